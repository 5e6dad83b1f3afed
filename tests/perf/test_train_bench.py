"""Both sides of the benchmark of training learn the same, and it says what it measured."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from released import CFG, write_released
from tailorbird.storage import write_json

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import talks
import train as bench
import trainers

Typed = Callable[..., tuple[int | str | None, str]]
PLAN = [
    {"rows": [1], "lengths": [9], "places": [64], "learned": 3, "tiles": 1},
    {"rows": [0, 2, 3], "lengths": [40, 20, 30], "places": [64, 64], "learned": 25, "tiles": 3},
    {"rows": [4], "lengths": [10], "places": [64], "learned": 3, "tiles": 1},
]


@pytest.mark.parity
def test_the_trainer_of_transformers_has_our_losses_on_the_same_conversations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(trainers, "LR", 5e-3)
    monkeypatch.setattr(talks, "KINDS", ((0.5, (1, 3), (2, 4), (1, 3)), (0.5, (1, 1), (2, 4), (20, 30))))
    monkeypatch.setattr(talks, "LONG_PX", 90)
    monkeypatch.setattr(talks, "SHORT_PX", (40, 90))
    file = talks.write_talks(tmp_path / "talks", 24)
    write_released(tmp_path / "model", replace(CFG, decoder=replace(CFG.decoder, max_positions=500)))
    rows = replace(trainers.ROWS, tokens=450, workers=0)
    ours = trainers.Ours(tmp_path / "model", file, rows, fast=False)
    plan = ours.plan(4)
    theirs = trainers.Theirs(tmp_path / "model", file, workers=0)
    batch = theirs.collate([theirs.rows[row] for row in plan[0]["rows"]])
    assert sorted(batch["attention_mask"].sum(1).tolist()) == sorted(plan[0]["lengths"])
    assert int((batch["labels"] >= 0).sum()) == plan[0]["learned"]
    mine, other = ours.run(plan), theirs.run(plan)
    assert mine["losses"] == pytest.approx(other["losses"], rel=1e-4)
    assert mine["losses"][-1] < mine["losses"][0]
    for side in (mine, other):
        assert [len(side[name]) for name in ("losses", "seconds", "waiting_s")] == [4, 4, 4]
        assert all(0 <= wait <= spent for wait, spent in zip(side["waiting_s"], side["seconds"], strict=True))


def run(late_s: float, waiting_s: float = 0.0) -> dict[str, Any]:
    losses = [3.0, 2.0, 1.0]
    return {"losses": losses, "seconds": [50.0, late_s, 1.0], "waiting_s": [9.0, waiting_s, 0.0]}


def test_only_tokens_of_conversations_in_steps_that_count_are_counted() -> None:
    found = {"tailorbird": [run(9.0, 0.1), run(7.0), run(24.0)], "transformers": [run(15.0)] * 3}
    ours, peer = (bench.row(way, PLAN, found, [0.01, 0.02, 0.5]) for way in found)
    assert (ours["tokens_s"], ours["tokens_s_spread"]) == (10.0, [4.0, 12.5])
    assert (ours["ratio"], peer["ratio"]) == (pytest.approx(1.6), 1.0)
    assert ours["padding"] == pytest.approx(1 - 100 / 192)
    assert peer["padding"] == pytest.approx(1 - 100 / 130)
    assert (ours["to_words"], peer["to_words"]) == (28 / 192, 1.0)
    assert (ours["loss"], ours["prepare_ms"], ours["wait_share"]) == (2.0, 20.0, 0.0)


def test_losses_that_differ_end_the_benchmark() -> None:
    other = {**run(1.0), "losses": [3.0, 2.0, 1.1]}
    assert bench.require_equal(run(1.0)["losses"], [run(2.0)]) == 0.0
    with pytest.raises(SystemExit, match=r"the losses differ by 9\.09%"):
        bench.require_equal(run(1.0)["losses"], [run(2.0), other])


def test_conversations_are_the_same_for_a_seed_and_of_many_lengths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(talks, "LONG_PX", 60)
    monkeypatch.setattr(talks, "SHORT_PX", (30, 60))
    files = [talks.write_talks(tmp_path / str(i), 30, seed=i // 2) for i in range(3)]
    first, again, other = (file.read_text() for file in files)
    assert first == again != other
    pictures = [(file.parent / "pictures/7.jpg").read_bytes() for file in files]
    assert pictures[0] == pictures[1] != pictures[2]
    sizes = sorted(len(line) for line in first.splitlines())
    assert sizes[-1] > 8 * sizes[0]


def test_both_sides_are_printed_with_their_losses_and_what_was_asked_for(
    typed: Typed, tmp_path: Path
) -> None:
    found = {"tailorbird": [run(9.0, 0.1)], "transformers": [run(15.0)]}
    rows = [bench.row(way, PLAN, found, [0.01]) for way in bench.WAYS]
    stamp = {"command": "make bench-train", "commit": "c0ffee", "hardware": "a machine", "date": "2026-01-02"}
    write_json(tmp_path / bench.FILE, {"rows": rows, "targets": bench.targets(rows[1]), **stamp})
    code, said = typed("bench", "train", "--against", "transformers", "--results", tmp_path)
    assert code == 0
    for words in ("transformers Trainer", "1.60x", "2.0000", "1.0%", "48%", "100%", "True", "c0ffee"):
        assert words in said
