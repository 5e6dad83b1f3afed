"""The component table of a policy, and the trace of one call."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from lerobot_folder import MODEL, write_folder
from released import write_released
from small_gguf import Gguf
from tailorbird.evals.scenes import fit_scenes
from tailorbird.infer.graphs import ReplayedVLA
from tailorbird.infer.policy import Policy, load_policy
from tailorbird.model.cost import Device
from tailorbird.perf.acting import is_policy, measure_policy, table
from tailorbird.perf.trace import time_stages, write_trace
from tailorbird.wire import Observation

STAGES = ["prepare", "vision", "prefix", "state", *(f"step {i + 1}" for i in range(MODEL.num_steps)), "write"]
Typed = Callable[..., tuple[int | str | None, str]]
DEVICE = Device("a device", {"float32": 1e12, "bfloat16": 2e12}, 1e10, "made up")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policies") / "policy"
    write_folder(path)
    return path


@pytest.fixture(params=["torch", "openvino"])
def policy(request: pytest.FixtureRequest, folder: Path) -> Policy:
    if request.param == "openvino":
        pytest.importorskip("openvino")
    return load_policy(folder, device="cpu", engine=request.param)


def scene(policy: Policy) -> Observation:
    return fit_scenes(policy.pipeline, 2)[0][0]


def test_a_timed_call_has_every_stage_and_leaves_the_policy_as_it_was(policy: Policy) -> None:
    seen = scene(policy)
    policy.reset(3)
    plain = policy.act(seen)
    policy.reset(3)
    ms = time_stages(policy, [seen])
    assert list(ms) == STAGES
    assert all(one > 0 for one in ms.values())
    assert "velocity" not in vars(policy.model), "the policy itself is as it was"
    policy.reset(3)
    np.testing.assert_array_equal(policy.act(seen).actions, plain.actions)


def test_stages_with_work_have_a_floor_and_shares_add_up(policy: Policy) -> None:
    found = measure_policy(policy, scene(policy), DEVICE, repeats=2)
    assert list(found.ms) == STAGES
    assert list(found.floors_ms) == STAGES[1:-1]
    assert found.dtype == "float32"
    console = Console(width=120, record=True)
    console.print(table(found))
    rows = console.export_text()
    assert found.engine in rows
    shares = [float(line.split("%")[0].split()[-1]) for line in rows.splitlines() if "%" in line]
    assert shares[-1] == 100
    assert sum(shares[:-1]) == pytest.approx(100, abs=1)


def test_what_is_recorded_is_one_stage_each_with_the_floors_of_what_they_hold(folder: Path) -> None:
    """On a CPU nothing is recorded, and the stages are the same."""
    plain = load_policy(folder, device="cpu")
    replayed = Policy(ReplayedVLA(plain.model), plain.pipeline)
    found, exact = (measure_policy(policy, scene(policy), DEVICE, repeats=1) for policy in (replayed, plain))
    assert list(found.ms) == ["prepare", "vision", "prefix", "denoise", "write"]
    assert found.engine == "graphs"
    assert sum(found.floors_ms.values()) == pytest.approx(sum(exact.floors_ms.values()))


def test_two_calls_of_the_expert_a_step_are_two_lines(folder: Path) -> None:
    policy = load_policy(folder, device="cpu", num_steps=2, solver="heun")
    assert list(time_stages(policy, [scene(policy)]))[4:-1] == [f"step {i}" for i in (1, 2, 3, 4)]


def test_the_trace_has_every_stage_as_an_event_inside_the_call(policy: Policy, tmp_path: Path) -> None:
    seen = scene(policy)
    policy.act(seen)
    write_trace(tmp_path / "call.json", policy, seen)
    assert [path.name for path in tmp_path.iterdir()] == ["call.json"], "no temporary file is left"
    events = json.loads((tmp_path / "call.json").read_text())["traceEvents"]
    stages = [one for one in events if one.get("cat") == "user_annotation" and one["name"] in STAGES]
    stages.sort(key=lambda one: one["ts"])
    assert [one["name"] for one in stages] == STAGES
    for first, then in pairwise(stages):
        assert first["ts"] + first["dur"] <= then["ts"] + 1, "microseconds, rounded"
    assert any(one["name"] == "aten::linear" for one in events)


def test_policies_are_told_from_models(folder: Path, tmp_path: Path) -> None:
    assert is_policy(str(folder))
    write_released(tmp_path / "vlm")
    assert not is_policy(str(tmp_path / "vlm"))
    assert not is_policy(str(Gguf().write(tmp_path / "words.gguf")))


def test_profile_prints_the_stages_and_writes_the_trace(typed: Typed, folder: Path, tmp_path: Path) -> None:
    words = ("profile", folder, "--device", "cpu", "--repeats", 1, "--trace")
    end, printed = typed(*words, tmp_path / "call.json")
    assert end == 0
    for stage in STAGES:
        assert stage in printed
    assert (tmp_path / "call.json").exists()
    assert "ends in .json" in str(typed(*words, tmp_path / "call.txt")[0])


def test_bfloat16_has_its_own_floor(folder: Path) -> None:
    policy = load_policy(folder, device="cpu", dtype=torch.bfloat16)
    found = measure_policy(policy, scene(policy), DEVICE, repeats=1)
    exact = measure_policy(load_policy(folder, device="cpu"), scene(policy), DEVICE, repeats=1)
    assert found.dtype == "bfloat16"
    assert found.floors_ms["vision"] < exact.floors_ms["vision"]
