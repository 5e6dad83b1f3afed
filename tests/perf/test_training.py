"""What a training is said to need, against steps that are made and measured."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from steps_measured import LEARNED, MODEL, TILES, TOKENS, settings

from tailorbird.checkpoint.fill import without_weights
from tailorbird.errors import ConfigError
from tailorbird.model.cost import DEVICES, vlm_cost
from tailorbird.model.vlm import VLM
from tailorbird.perf.passes import Alive, Shape, vlm_pass
from tailorbird.perf.training import MFU, Foreseen, Trial, foresee
from tailorbird.train.stages import choose

CASES: list[dict[str, Any]] = [
    {"passes": 2},
    {"checkpointing": True},
    {"precision": "bfloat16", "ema": 0.9},
    {"rank": 4, "passes": 2},
]


def foreseen(asked: dict[str, Any], gpus: int = 1, rows: int = 1) -> Foreseen:
    cfg, learn, passes = settings(asked)
    with without_weights():
        model = VLM(MODEL)
    shape = Shape(rows=rows, tokens=TOKENS, tiles=TILES, learned=LEARNED)
    groups = choose(model, learn, 0)
    trial = Trial(model=model, groups=groups, cfg=cfg, call=vlm_pass(shape), passes=passes)
    return foresee(trial, gpus)


def test_the_memory_of_real_steps_is_foreseen_within_15_percent() -> None:
    """Needs Linux: it is the peak of a process, less what it had before it built the model."""
    script = Path(__file__).with_name("steps_measured.py")
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(CASES)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
    )
    assert done.returncode == 0, done.stderr
    told = [
        foreseen(one).peak / measured for one, measured in zip(CASES, json.loads(done.stdout), strict=True)
    ]
    assert told == pytest.approx([1.0] * len(CASES), abs=0.15), json.loads(done.stdout)


def test_what_is_held_and_what_learns_is_counted_exactly() -> None:
    plain, narrow = foreseen({}), foreseen({"precision": "bfloat16", "ema": 0.9})
    num = sum(one.numel() for one in VLM(MODEL).parameters())
    assert sum(map(sum, plain.parts.values())) == num
    assert plain.held == {"weights": 4 * num, "gradients": 4 * num, "moments": 8 * num}
    assert narrow.held == {**plain.held, "narrow copy": 2 * num, "averaged weights": 4 * num}
    learned = foreseen({"rank": 4}).parts
    assert learned["vision"] == (0, plain.parts["vision"][0])
    assert learned["text"][1] == plain.parts["text"][0]
    eight = foreseen({"optimizer": "adamw8bit"}).held["moments"]
    assert 2 * num < eight < 2.2 * num


def test_operations_are_three_times_those_of_a_pass_forward_and_more_where_it_is_made_again() -> None:
    stages = vlm_cost(MODEL, tiles=TILES, tokens=TOKENS)
    head = 2 * MODEL.decoder.width * MODEL.decoder.vocab
    forward = sum(stages[name].flops for name in ("vision", "connector", "prefill")) + (LEARNED - 1) * head
    assert foreseen({}).flops == pytest.approx(3 * forward, rel=0.05)
    assert foreseen({"passes": 6}).flops == 6 * foreseen({}).flops == 3 * foreseen({}, rows=2).flops
    assert foreseen({"checkpointing": True}).flops > 3.5 * forward
    assert foreseen({"rank": 4}).flops < 2.5 * forward  # the tower is not gone back through


def test_hours_are_operations_at_a_share_of_the_peak() -> None:
    found = replace(foreseen({}), flops=10**15, gpus=4)
    device = DEVICES["H100"]
    hours = found.hours(3600, device, "bfloat16")
    assert hours == pytest.approx(1e15 / (MFU * 989.5e12 * 4))


def test_processes_share_the_passes_of_a_step_and_with_fsdp_what_is_held() -> None:
    one, two = foreseen({"passes": 4}), foreseen({"passes": 4}, gpus=2)
    shards = foreseen({"passes": 4, "parallel": "fsdp"}, gpus=2)
    assert one.flops == two.flops == shards.flops
    assert two.held == one.held
    assert {name: 2 * num for name, num in shards.held.items()} == one.held
    with pytest.raises(ConfigError, match="3 GPUs cannot share the 4 passes of a step"):
        foreseen({"passes": 4}, gpus=3)


def test_tensors_that_are_gone_are_not_alive() -> None:
    with Alive() as alive:
        first = torch.empty(1000, device="meta")
        second = first.view(10, 100)
        del first
        assert alive.now == 4000
        third = second + 1
        del second
        assert (alive.now, alive.peak) == (4000, 8000)
        del third
    assert alive.now == 0
