"""Several processes learn what one learns; whatever ends them, the run goes on, on any number of them."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Ranks
from safetensors.torch import load_file
from small import MODEL
from tiny_vlm import new_vlm

from tailorbird.errors import ConfigError
from tailorbird.model.vla import VLA
from tailorbird.train.config import LearnConfig, LoraConfig, VLMTrainConfig
from tailorbird.train.log import read_metrics
from tailorbird.train.parallel import Team, check_sharding, join_team
from tailorbird.train.stages import choose
from tailorbird.train.state import checkpoint_at, newest_checkpoint

SCRIPT = Path(__file__).with_name("ranks.py")
LONG = {"steps": 50, "warmup": 5, "save_every": 20, "eval_every": 25, "log_every": 1, "start": 20}
SHORT = {"steps": 12, "save_every": 2, "eval_every": 15, "keep": 3}
FILES = ("model.safetensors", "train.safetensors")


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks() as made:
        yield made


def finish(ranks: Ranks, run: Path, num: int, **options: Any) -> Path:
    done = ranks(run, num, **options)
    assert done.codes == [0] * num, done.said
    return checkpoint_at(run, options["steps"])


def assert_close(one: Path, other: Path) -> None:
    """Within 1e-5, besides what nothing depends on.

    A bias that all keys share moves no attention: its gradient is rounding, of which AdamW makes full steps.
    """
    mine, theirs = (load_file(folder / "train.safetensors") for folder in (one, other))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        if name.startswith(("model.", "mean.")):
            ours, others = value, theirs[name]
            if name.endswith("vision.blocks.0.attn.qkv.bias"):
                width = len(value) // 3
                ours, others = (torch.cat([x[:width], x[2 * width :]]) for x in (ours, others))
            torch.testing.assert_close(ours, others, rtol=0, atol=1e-5, msg=name)
    facts = [json.loads((folder / "train.json").read_text()) for folder in (one, other)]
    assert facts[0]["position"] == facts[1]["position"]
    assert facts[0]["recent"] == pytest.approx(facts[1]["recent"], abs=1e-5)


def assert_bitwise(one: Path, other: Path) -> None:
    for name in FILES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.fixture(scope="module")
def alone(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 steps of one process with 4 parts each; the image tower begins at step 20."""
    return finish(ranks, tmp_path_factory.mktemp("ranks") / "alone", 1, **LONG)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_with_two_parts_each_learn_what_one_learns_from_four(
    ranks: Ranks, alone: Path, tmp_path: Path, parallel: str
) -> None:
    both = finish(ranks, tmp_path, 2, parallel=parallel, **LONG)
    assert_close(both, alone)
    clocked = {"samples_s", "tokens_s", "wait"}
    for mine, theirs in zip(read_metrics(tmp_path), read_metrics(alone.parents[1]), strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine.keys() - clocked:
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), (name, mine["step"])
    assert (both / "model.safetensors").stat().st_size == (alone / "model.safetensors").stat().st_size


def test_a_signal_to_any_process_saves_and_another_number_of_them_goes_on(
    ranks: Ranks, alone: Path, tmp_path: Path
) -> None:
    done = ranks(tmp_path, 2, parallel="fsdp", act="SIGTERM", at=12, on=1, **LONG)
    assert done.codes == [0, 0], done.said
    assert "step=13 finished=False stopped_by=15" in done.said[1]
    assert "step=13 finished=False stopped_by=None" in done.said[0]  # which nobody told
    assert newest_checkpoint(tmp_path) == checkpoint_at(tmp_path, 13)
    done = ranks(tmp_path, 4, parallel="ddp", act="SIGUSR1", at=29, on=2, **LONG)  # as some clusters say it
    assert done.codes == [0] * 4, done.said
    assert newest_checkpoint(tmp_path) == checkpoint_at(tmp_path, 30), done.said
    assert_close(finish(ranks, tmp_path, 1, **LONG), alone)


def test_a_process_that_fails_takes_the_others_down_and_they_say_why(ranks: Ranks, tmp_path: Path) -> None:
    done = ranks(tmp_path, 2, act="error", at=6, on=1, **SHORT)
    assert done.codes == [1, 1]
    assert "error: this process has had enough" in done.said[1]
    assert "another process of the team has ended" in done.said[0]
    assert newest_checkpoint(tmp_path) == checkpoint_at(tmp_path, 6)


def test_torchrun_starts_a_killed_team_again_and_the_run_is_the_same_bit_for_bit(
    ranks: Ranks, tmp_path: Path
) -> None:
    options = json.dumps({"act": "SIGKILL", "at": 9, "on": 1, **SHORT})
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    done = subprocess.run(
        [sys.executable, *torchrun, str(SCRIPT), str(tmp_path / "killed"), options],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "exitcode  : -9" in done.stderr or "exitcode: -9" in done.stderr
    whole = finish(ranks, tmp_path / "whole", 2, **SHORT)
    assert_bitwise(checkpoint_at(tmp_path / "killed", 12), whole)


def killed(ranks: Ranks, run: Path, num: int, times: int, seed: int, **options: Any) -> tuple[Path, int]:
    """A run that is killed at random moments, every third time within a save, until it is allowed to end.

    Returns its last checkpoint, and how many kills left an unfinished one.
    """
    draw, halves = random.Random(seed), 0
    for number in range(times):
        newest = newest_checkpoint(run)
        step = int(newest.name[5:]) if newest else 0
        at = min(step + draw.randint(1, 4), options["steps"] - 2)
        moment: dict[str, Any] = [
            {"act": "within a save", "at": at, "delay": draw.uniform(0, 0.01)},
            {"act": "SIGKILL", "at": at, "delay": draw.uniform(1e-4, 0.1)},
            {"act": "SIGKILL", "at": -1, "delay": draw.uniform(1e-4, 0.5)},  # while it begins
        ][number % 3]
        where = [None, 0] if "save" in moment["act"] else [None, *range(num)]
        done = ranks(run, num, on=draw.choice(where), **moment, **options)
        assert -9 in done.codes, done
        assert all((path / "train.json").exists() for path in (run / "checkpoints").glob("step-*"))
        halves += any((run / "checkpoints").glob(".step-*.new"))
    return finish(ranks, run, num, **options), halves


def test_a_run_killed_three_times_at_random_ends_as_if_it_had_not_been(ranks: Ranks, tmp_path: Path) -> None:
    whole = finish(ranks, tmp_path / "whole", 1, **SHORT)
    last, halves = killed(ranks, tmp_path / "killed", 1, times=3, seed=4, workers=2, **SHORT)
    assert_bitwise(last, whole)
    assert halves


@pytest.mark.full
@pytest.mark.parametrize("num", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_twenty_times_at_random_ends_as_if_it_had_not_been(
    ranks: Ranks, tmp_path: Path, num: int, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = {**SHORT, "steps": 80, "start": 30}
    whole = finish(ranks, tmp_path / "whole", num, **cfg)
    last, halves = killed(ranks, tmp_path / "killed", num, 20, seed=num + workers, workers=workers, **cfg)
    assert_bitwise(last, whole)
    assert halves >= 5
    with capsys.disabled():
        print(f"\nprocesses: {num}, workers: {workers}, kills: 20, within a save: {halves}: the same bits")


def test_dropout_of_low_rank_updates_is_the_same_on_any_number_of_processes(
    ranks: Ranks, tmp_path: Path
) -> None:
    cfg = {**SHORT, "lora": True, "steps": 8}
    assert_close(finish(ranks, tmp_path / "two", 2, **cfg), finish(ranks, tmp_path / "one", 1, **cfg))


def test_bf16_shards_learn_and_their_masters_are_fp32(ranks: Ranks, tmp_path: Path) -> None:
    cfg = {
        **SHORT,
        "steps": 8,
        "save_every": 8,
        "parallel": "fsdp",
        "precision": "bfloat16",
        "checkpointing": True,
    }
    made = load_file(finish(ranks, tmp_path, 2, **cfg) / "train.safetensors")
    assert {one.dtype for one in made.values()} == {torch.float32}
    losses = [row["loss"] for row in read_metrics(tmp_path) if "loss" in row]
    assert losses[-1] < losses[0] - 0.8


def test_one_process_alone_is_a_team_that_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    team = join_team()
    assert (team, team.is_first) == (Team(), True)
    assert (team.total(2, 3), team.any(False), team.gather("x")) == ([2, 3], False, ["x"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"WORLD_SIZE is set and 'RANK' is not: start .* torchrun"):
        join_team()


def test_what_cannot_be_sharded_is_refused_by_name() -> None:
    model, bare = new_vlm(), VLMTrainConfig(parallel="fsdp")
    check_sharding(model, bare)
    choose(model, LearnConfig(lora=LoraConfig(rank=2, targets=("decoder.blocks.*.attn.out",))), 0)
    for shown, changes, told in (
        (model, {}, "low-rank updates, which are small"),
        (new_vlm(), {"optimizer": "adamw8bit", "compile": True}, "adamw8bit, or compiled blocks"),
        (VLA(MODEL), {"precision": "bfloat16"}, "a policy in bfloat16, whose expert stays fp32"),
    ):
        with pytest.raises(ConfigError, match=rf"fsdp cannot shard .*{told}.*: choose ddp"):
            check_sharding(shown, replace(bare, **changes))
