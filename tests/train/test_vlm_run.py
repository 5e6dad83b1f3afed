"""Whole runs of a VLM: stages, exact resume, steps that go wrong, what is kept and what is said."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_vlm import CONFIG, SMALL, Counting, lesson_of, new_vlm, pack, sample, teach_vlm

from tailorbird.checkpoint.vlm import read_vlm
from tailorbird.errors import ConfigError, DataError, StorageError, TailorbirdError
from tailorbird.model.vlm import VLM
from tailorbird.train.config import LearnConfig, LoraConfig, Pace, VLMTrainConfig
from tailorbird.train.log import read_metrics
from tailorbird.train.loop import train
from tailorbird.train.saver import Saver
from tailorbird.train.stages import choose
from tailorbird.train.state import checkpoint_at, newest_checkpoint, start_state
from tailorbird.train.update import update
from tailorbird.train.vlm import VLMLesson
from tailorbird.types import Rows

LATE = LearnConfig(vision=Pace(rate=0.5, start=7), text=Pace(learns=False))
FILES = ("model.safetensors", "train.safetensors", "config.json", "tokenizer.json")
CLOCKED = {"samples_s", "tokens_s", "wait", "seconds"}


def stop() -> None:
    raise RuntimeError("here")


def assert_same(one: Path, other: Path) -> None:
    for name in FILES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    facts = [json.loads((folder / "train.json").read_text()) for folder in (one, other)]
    mine, theirs = ({k: v for k, v in fact.items() if k not in CLOCKED} for fact in facts)
    assert mine == theirs


@pytest.mark.parametrize(
    "cfg",
    [
        replace(CONFIG, neftune=5.0),
        replace(CONFIG, precision="bfloat16", ema=0.0, checkpointing=True),
    ],
    ids=["averaged, with noise", "narrow"],
)
@pytest.mark.parametrize("at", [6, 8, 11])
def test_a_run_interrupted_before_or_after_a_switch_continues_bit_for_bit(
    tmp_path: Path, cfg: VLMTrainConfig, at: int
) -> None:
    whole = teach_vlm(tmp_path / "whole", cfg, LATE)
    feed = Counting()
    feed.act[at] = stop
    with pytest.raises(RuntimeError, match="here"):
        teach_vlm(tmp_path / "part", cfg, LATE, feed)
    assert newest_checkpoint(tmp_path / "part") == checkpoint_at(tmp_path / "part", at // 5 * 5)
    again = teach_vlm(tmp_path / "part", cfg, LATE)
    assert_same(again.checkpoint, whole.checkpoint)
    rows = [
        [{k: v for k, v in row.items() if k not in CLOCKED} for row in read_metrics(tmp_path / run)]
        for run in ("whole", "part")
    ]
    assert rows[0] == rows[1]


def test_what_learns_late_is_untouched_until_then_and_begins_with_empty_moments() -> None:
    cfg = replace(CONFIG, warmup=0, ema=0.5)
    model = new_vlm()
    state = start_state(model, choose(model, LATE, 0), cfg)
    lesson = lesson_of(cfg, Counting())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    early = dict(model.named_parameters())["vision.norm.weight"]
    for step, portions in enumerate(lesson.steps(0, 9)):
        update(state, portions, lesson, cfg)
        moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        vision = {name for name in before if name.startswith("vision.")}
        assert not moved & {name for name in before if name.startswith(("decoder.blocks.", "decoder.norm."))}
        assert {"connector.proj.weight", "head.weight", "decoder.embed.weight"} <= moved
        assert moved & vision == (set() if step < 7 else vision)
        assert (early in state.optimizer.state) == (step >= 7)
    assert state.optimizer.state[early]["step"] == 2
    assert state.optimizer.state[model.connector.proj.weight]["step"] == 9
    assert state.mean is not None
    kept = dict(state.mean.named_parameters())["vision.norm.weight"]
    assert not torch.equal(kept, before["vision.norm.weight"])


def test_parts_of_unequal_weight_make_the_gradient_of_one_batch() -> None:
    """One part has a quarter of the tokens of the other: a mean of means would differ."""
    parts = [pack([[3]], words=4), pack([[4, 5]], words=8)]
    whole = pack([[3], [4, 5]])
    small = sample(3, words=4)
    for name, fill in (("ids", 2), ("learned", 0), ("segment", -1), ("positions", 0)):
        getattr(whole, name)[0] = fill
    num = len(small["ids"])
    whole.ids[0, :num], whole.learned[0, :num] = small["ids"], small["learned"]
    whole.segment[0, :num], whole.positions[0, :num] = 0, torch.arange(num)
    assert whole.pixels is not None
    whole.pixels[0] = small["pixels"][0]
    found = []
    for rows in (parts, [whole]):
        cfg, model = replace(CONFIG, clip=1e9), new_vlm()
        state = start_state(model, choose(model, LearnConfig(), 0), cfg)
        lesson, feed = lesson_of(cfg, Counting()), Given(rows)
        lesson.feed = feed
        seen: dict[str, torch.Tensor] = {}
        state.optimizer.register_step_pre_hook(
            lambda *_, model=model, seen=seen: seen.update(
                {name: one.grad.clone() for name, one in model.named_parameters()}
            )
        )
        outcome = update(state, next(iter(lesson.steps(0, 1))), lesson, cfg)
        found.append((outcome.loss, seen))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(gradient, found[1][1][name], rtol=1e-5, atol=1e-6, msg=name)


class Given(Counting):
    """One step of the rows of a test."""

    def __init__(self, rows: list[Rows]) -> None:
        super().__init__()
        self.rows = rows

    def steps(self, start: int, stop: int):  # type: ignore[no-untyped-def]
        yield self.rows


def poisoned(rows: Rows) -> Rows:
    assert rows.pixels is not None
    return replace(rows, pixels=torch.full_like(rows.pixels, math.nan))


def test_a_step_that_is_not_finite_stops_the_run_and_names_its_samples(tmp_path: Path) -> None:
    feed = Counting()
    feed.spoil[6] = poisoned
    with pytest.raises(TailorbirdError, match=r"step 6: the loss is nan\. .*sample 18, .*step-000005$"):
        teach_vlm(tmp_path, feed=feed)
    (told,) = json.loads((tmp_path / "bad_step.json").read_text())
    assert (told["step"], told["why"], told["loss"]) == (6, "the loss is nan", "nan")
    assert [part["samples"] for part in told["parts"]] == [["sample 18"], ["sample 19", "sample 20"]]
    assert all(value.isfinite().all() for value in load_file(checkpoint_at(tmp_path, 5) / FILES[1]).values())


def test_steps_that_may_be_left_out_change_nothing_and_are_counted(tmp_path: Path) -> None:
    feed = Counting()
    feed.spoil |= {4: poisoned, 6: poisoned}
    cfg = replace(CONFIG, skip_bad_steps=2)
    trained = teach_vlm(tmp_path, cfg, feed=feed)
    assert (trained.finished, trained.step) == (True, 12)
    assert [row["skipped"] for row in read_metrics(tmp_path) if "skipped" in row] == [1, 2]
    assert [one["step"] for one in json.loads((tmp_path / "bad_step.json").read_text())] == [4, 6]
    assert json.loads((trained.checkpoint / "train.json").read_text())["skipped"] == 2
    saved = load_file(trained.checkpoint / "train.safetensors")
    assert all(value.isfinite().all() for value in saved.values())
    assert saved["step.head.weight"] == 10
    feed = Counting()
    feed.spoil |= {4: poisoned, 6: poisoned}
    with pytest.raises(TailorbirdError, match="step 6: "):
        teach_vlm(tmp_path / "strict", replace(cfg, skip_bad_steps=1), feed=feed)


def test_a_loss_far_above_the_median_is_a_fault(tmp_path: Path) -> None:
    feed = Counting()

    def alike(rows: Rows) -> Rows:
        said = rows.learned & (rows.ids != SMALL.image_token_id)
        return replace(rows, ids=torch.where(said, 21, rows.ids))

    feed.spoil |= dict.fromkeys(range(30), alike)
    cfg = replace(CONFIG, steps=32, lr=2e-2, log_every=50, eval_every=50, save_every=50, spike=3.0)
    with pytest.raises(TailorbirdError, match=r"step 30: the loss is \d.*the median of the last 30 steps"):
        teach_vlm(tmp_path / "spike", cfg, feed=feed)
    feed.next = 0
    assert teach_vlm(tmp_path / "none", replace(cfg, spike=0.0), feed=feed).finished


def test_the_newest_checkpoints_and_the_best_are_kept(tmp_path: Path) -> None:
    cfg = replace(CONFIG, save_every=3, eval_every=2, keep=1, best="held_out_loss", best_is="highest")
    trained = teach_vlm(tmp_path, cfg)
    measured = {row["step"]: row["held_out_loss"] for row in read_metrics(tmp_path) if "held_out_loss" in row}
    best = max(measured, key=lambda step: measured[step])
    assert trained.best == checkpoint_at(tmp_path, best)
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert left == {trained.best.name, checkpoint_at(tmp_path, 12).name}
    read_vlm(trained.best)
    assert teach_vlm(tmp_path, cfg).best == trained.best
    with pytest.raises(ConfigError, match=r"the evaluation has held_out_loss, .*choose one"):
        teach_vlm(tmp_path / "other", replace(cfg, best="accuracy"))


def test_no_average_is_kept_where_none_is_asked(tmp_path: Path) -> None:
    cfg = replace(CONFIG, steps=2, ema=0.0)
    model = new_vlm()
    assert start_state(model, choose(model, LearnConfig(), 0), cfg).mean is None
    trained = teach_vlm(tmp_path, cfg)
    saved = load_file(trained.checkpoint / "train.safetensors")
    assert not any(name.startswith("mean.") for name in saved)
    model = read_vlm(trained.checkpoint).model
    assert torch.equal(model.connector.proj.weight, saved["model.connector.proj.weight"])


def test_the_log_says_the_loss_of_each_source_its_rates_and_what_was_dropped(tmp_path: Path) -> None:
    teach_vlm(tmp_path, learn=LATE)
    lines = [row for row in read_metrics(tmp_path) if "loss" in row]
    for row in lines:
        assert min(row["loss/even"], row["loss/odd"]) <= row["loss"] * 1.2
        assert 0 < row["padding"] < 1
        assert row["tokens_s"] > row["samples_s"] > 0
    assert [row.get("lr/vision", 0) > 0 for row in lines] == [False, True, True]
    assert lines[-1]["lr/vision"] == pytest.approx(lines[-1]["lr/connector"] / 2)
    assert [row["dropped/odd/no picture"] for row in lines] == [1.0, 2.0, 3.0]
    assert {"held_out_loss", "held_out_loss/even", "held_out_loss/odd"} <= read_metrics(tmp_path)[-1].keys()


def test_an_evaluation_does_not_count_as_time_that_samples_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, late = time.perf_counter, [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + late[0])

    class Slow(VLMLesson):
        def evaluate(self, model: VLM) -> dict[str, float]:
            late[0] += 1e6
            return super().evaluate(model)

    model = new_vlm()
    groups, lesson = choose(model, LearnConfig(), 0), lesson_of(CONFIG, Counting())
    lesson.__class__ = Slow
    train(CONFIG, lesson, model, groups, tmp_path)
    assert min(row["samples_s"] for row in read_metrics(tmp_path) if "loss" in row) > 1e-3


def test_where_the_data_end_early_the_run_is_finished_and_saved(tmp_path: Path) -> None:
    trained = teach_vlm(tmp_path, feed=Counting(end=24))
    assert (trained.finished, trained.step, trained.checkpoint) == (True, 8, checkpoint_at(tmp_path, 8))
    before = read_metrics(tmp_path)
    assert before[-1].keys() >= {"held_out_loss"}
    assert teach_vlm(tmp_path, feed=Counting(end=24)).step == 8
    assert read_metrics(tmp_path) == before
    with pytest.raises(DataError, match="nothing to learn from"):
        teach_vlm(tmp_path / "none", feed=Counting(end=0))


def test_other_data_or_another_pace_is_refused(tmp_path: Path) -> None:
    teach_vlm(tmp_path, replace(CONFIG, steps=2), LATE)
    feed = Counting()
    feed.settings = {"kind": "other"}
    with pytest.raises(ConfigError, match=r"\{'data\.kind': \('counting', 'other'\)\}"):
        teach_vlm(tmp_path, replace(CONFIG, steps=2), LATE, feed)
    sooner = replace(LATE, vision=Pace(rate=0.5, start=6))
    with pytest.raises(ConfigError, match=r"\{'stages\.vision\.start': \(7, 6\)\}"):
        teach_vlm(tmp_path, replace(CONFIG, steps=2), sooner)


@pytest.mark.parametrize(
    ("learn", "told"),
    [
        (LearnConfig(expert=Pace(start=3)), "the model has no expert"),
        (LearnConfig(part="expert"), "nothing learns at the first step"),
        (
            LearnConfig(lora=LoraConfig(rank=2, targets=("vision.*.up",)), vision=Pace(start=1)),
            "nothing learns",
        ),
    ],
)
def test_paces_that_cannot_be_kept_are_refused(learn: LearnConfig, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        choose(new_vlm(), learn, 0)


def test_an_error_in_writing_a_checkpoint_is_raised_at_the_next_turn() -> None:
    def fail() -> Path:
        raise StorageError("the disk is full")

    turns: tuple[Callable[[Saver], None], ...] = (
        lambda saver: saver.join(),
        lambda saver: saver.submit(lambda: Path("next")),
    )
    for turn in turns:
        with Saver(None) as saver:
            saver.submit(fail)
            with pytest.raises(StorageError, match="disk is full"):
                turn(saver)
