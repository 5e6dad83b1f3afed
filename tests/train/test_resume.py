"""Whatever interrupts a run: continued, it is bit for bit the run that nothing interrupted."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from small import CONFIG, MODEL, fit, load, new_model, teach

from tailorbird.checkpoint.policy import read_policy
from tailorbird.errors import CheckpointError, ConfigError, TailorbirdError
from tailorbird.model.vla import VLA
from tailorbird.processing.pipeline import Pipeline
from tailorbird.processing.text import InstructionTokenizer, train_tokenizer
from tailorbird.train.log import read_metrics
from tailorbird.train.state import checkpoint_at, newest_checkpoint

FILES = ("model.safetensors", "train.safetensors", "config.json", "tokenizer.json")
CLOCKED = {"samples_s", "wait", "seconds"}  # differ from run to run


def rows(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in CLOCKED} for row in read_metrics(run)]


def assert_same_run(run: Path, whole: Path) -> None:
    assert rows(run) == rows(whole)
    mine, theirs = (checkpoint_at(path, CONFIG.steps) for path in (run, whole))
    for name in FILES:
        assert (mine / name).read_bytes() == (theirs / name).read_bytes(), name
    ours, others = (json.loads((folder / "train.json").read_text()) for folder in (mine, theirs))
    assert {k: v for k, v in ours.items() if k not in CLOCKED} == {
        k: v for k, v in others.items() if k not in CLOCKED
    }


def steps_kept(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def interrupted(discs: Path, run: Path, deed: str, step: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, Path(__file__).with_name("small.py"), discs, run, deed, str(step)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def copy_at_ten(whole: Path, run: Path) -> Path:
    """A run that stands at step 10 of 12. Returns its newest checkpoint."""
    shutil.copytree(whole, run)
    shutil.rmtree(checkpoint_at(run, 12))
    return checkpoint_at(run, 10)


def test_two_runs_are_the_same_bit_for_bit(discs: Path, whole: Path, tmp_path: Path) -> None:
    again = fit(discs, tmp_path)
    assert_same_run(tmp_path, whole)
    assert (again.step, again.finished) == (12, True)
    assert again.checkpoint == checkpoint_at(tmp_path, 12)


def test_another_seed_is_another_run(discs: Path, whole: Path, tmp_path: Path) -> None:
    fit(discs, tmp_path, seed=1)
    assert [row["step"] for row in rows(tmp_path)] == [row["step"] for row in rows(whole)]
    pairs = list(zip(rows(tmp_path), rows(whole), strict=True))
    assert pairs[0][0] == pairs[0][1]  # how many numbers learn
    assert all(mine != theirs for mine, theirs in pairs[1:])


def test_a_run_ended_by_ctrl_c_is_saved_and_continues_exactly(
    discs: Path, whole: Path, tmp_path: Path
) -> None:
    done = interrupted(discs, tmp_path, "SIGINT", 6)
    assert done.returncode == 0, done.stderr
    assert "step=7" in done.stdout
    assert "finished=False" in done.stdout
    assert steps_kept(tmp_path) == ["step-000005", "step-000007"]  # the step in hand was finished and saved
    fit(discs, tmp_path)
    assert_same_run(tmp_path, whole)


def test_a_killed_run_continues_exactly_from_its_last_checkpoint(
    discs: Path, whole: Path, tmp_path: Path
) -> None:
    done = interrupted(discs, tmp_path, "SIGKILL", 9)
    assert done.returncode == -signal.SIGKILL
    assert steps_kept(tmp_path) == ["step-000005"]
    assert rows(tmp_path)[-1]["step"] == 8  # was logged and will be made again
    unfinished = tmp_path / "checkpoints/.step-000010.new"
    unfinished.mkdir()
    (unfinished / "model.safetensors").write_bytes(b"half")
    fit(discs, tmp_path)
    assert_same_run(tmp_path, whole)
    assert steps_kept(tmp_path) == ["step-000010", "step-000012"]


def test_a_full_disk_is_named_and_leaves_the_last_checkpoint_to_continue_from(
    discs: Path, whole: Path, tmp_path: Path
) -> None:
    done = interrupted(discs, tmp_path, "full disk", 7)
    assert done.returncode == 1, done.stderr
    assert f"cannot write {checkpoint_at(tmp_path, 10)}" in done.stdout
    assert "then run the same command again" in done.stdout
    assert steps_kept(tmp_path) == ["step-000005"]
    read_policy(checkpoint_at(tmp_path, 5))
    fit(discs, tmp_path)
    assert_same_run(tmp_path, whole)


def test_a_finished_run_is_left_as_it_is(discs: Path, whole: Path) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    again = fit(discs, whole)
    spent = json.loads((checkpoint_at(whole, 12) / "train.json").read_text())["seconds"]
    assert (again.step, again.finished, again.seconds) == (12, True, spent)
    assert spent > 0
    assert again.checkpoint == checkpoint_at(whole, 12)
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_how_often_a_run_logs_and_saves_may_change_on_the_way(
    discs: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    copy_at_ten(whole, run)
    fit(discs, run, log_every=1, save_every=1, keep=9)
    assert steps_kept(run) == ["step-000010", "step-000011", "step-000012"]
    mine, theirs = (checkpoint_at(path, 12) / "model.safetensors" for path in (run, whole))
    assert mine.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lr": 1.0}, r"\{'train\.lr': \(0\.002, 1\.0\)\}"),
        ({"batch": 7, "keep": 9}, r"\{'train\.batch': \(6, 7\)\}"),
    ],
)
def test_another_schedule_is_refused_then_and_now_side_by_side(
    discs: Path, whole: Path, changes: dict[str, float], told: str
) -> None:
    with pytest.raises(
        ConfigError, match=rf"step-000012 was trained with other settings.*{told}.*another --out"
    ):
        fit(discs, whole, **changes)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda p: replace(p, image=replace(p.image, crop=(0.0, 0.0, 0.5, 1.0))), r"pipeline\.image\.crop"),
        (lambda p: replace(p, state=replace(p.state, mean=(0.0, 0.0, 0.0))), r"pipeline\.state\.mean"),
        (lambda p: replace(p, tokenizer=InstructionTokenizer(train_tokenizer(["go"], 300), 24)), "tokenizer"),
    ],
)
def test_other_data_or_another_pipeline_is_refused(
    discs: Path, whole: Path, change: Callable[[Pipeline], Pipeline], told: str
) -> None:
    loader, _ = load(discs, discs.with_name("frames"))
    other = change(loader.pipeline)
    with pytest.raises(ConfigError, match=rf"other settings or data, \(then, now\): \{{'{told}': "):
        teach(CONFIG, new_model(), loader, whole, pipeline=other)


def test_a_network_that_computes_otherwise_is_refused_even_if_its_weights_have_the_same_shapes(
    discs: Path, whole: Path
) -> None:
    loader, _ = load(discs, discs.with_name("frames"))
    other = VLA(replace(MODEL, num_steps=5))
    with pytest.raises(ConfigError, match=r"\{'model\.num_steps': \(3, 5\)\}"):
        teach(CONFIG, other, loader, whole)


@pytest.mark.parametrize("name", ["train.safetensors", "train.json"])
@pytest.mark.parametrize("keep", [None, 30])
def test_a_missing_or_cut_file_of_a_checkpoint_is_named(
    discs: Path, whole: Path, tmp_path: Path, name: str, keep: int | None
) -> None:
    path = copy_at_ten(whole, tmp_path / "run") / name
    if keep is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises((CheckpointError, ConfigError), match=f"step-000010.*{Path(name).stem}"):
        fit(discs, tmp_path / "run")


def test_a_checkpoint_without_its_moments_is_refused(discs: Path, whole: Path, tmp_path: Path) -> None:
    path = copy_at_ten(whole, tmp_path / "run") / "train.safetensors"
    tensors = load_file(path)
    del tensors["exp_avg.state_in.weight"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"step-000010 lacks 'exp_avg\.state_in\.weight'"):
        fit(discs, tmp_path / "run")


def test_a_checkpoint_of_another_version_is_refused(discs: Path, whole: Path, tmp_path: Path) -> None:
    path = copy_at_ten(whole, tmp_path / "run") / "train.json"
    facts = json.loads(path.read_text())
    del facts["losses"]
    path.write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match=r"step-000010 lacks 'losses': another version saved it"):
        fit(discs, tmp_path / "run")


def test_the_newest_checkpoint_is_the_highest_step_and_never_an_unfinished_or_renamed_one(
    tmp_path: Path,
) -> None:
    assert newest_checkpoint(tmp_path) is None
    for name in (
        "step-000009",
        "step-999999",
        "step-1000000",
        ".step-2000000.new",
        "step-3000000-best",
        "notes",
    ):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert newest_checkpoint(tmp_path) == checkpoint_at(tmp_path, 1_000_000)


def test_only_the_newest_checkpoints_are_kept_and_what_a_person_renamed(
    discs: Path, whole: Path, tmp_path: Path
) -> None:
    assert steps_kept(whole) == ["step-000010", "step-000012"]
    run = tmp_path / "run"
    copy_at_ten(whole, run).rename(run / "checkpoints/step-000010-best")
    with pytest.raises(TailorbirdError, match="step 11"):
        fit(discs, run, save_every=2, at=11, act=lambda: stop("step 11"))
    assert steps_kept(run) == ["step-000008", "step-000010", "step-000010-best"]


def stop(why: str) -> None:
    raise TailorbirdError(why)
