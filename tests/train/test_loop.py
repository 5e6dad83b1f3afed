"""What a run does besides coming back: it learns, it reports, and it stops when it must."""

import math
import signal
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import CONFIG, fit, load, new_model, teach

from tailorbird.checkpoint.policy import read_policy
from tailorbird.errors import ConfigError, TailorbirdError
from tailorbird.train.config import VLATrainConfig
from tailorbird.train.log import read_metrics
from tailorbird.train.loop import _stop_request
from tailorbird.train.state import checkpoint_at
from tailorbird.train.vla_step import measure


def losses(run: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_metrics(run) if "loss" in row}


def test_each_line_of_the_log_has_the_mean_loss_since_the_line_before(
    discs: Path, whole: Path, tmp_path: Path
) -> None:
    fit(discs, tmp_path, log_every=1)
    each = losses(tmp_path)
    assert list(each) == list(range(1, 13))
    assert list(losses(whole)) == [4, 8, 12]
    for end, mean in losses(whole).items():
        assert mean == pytest.approx(sum(each[step] for step in range(end - 3, end + 1)) / 4, rel=1e-12)


def test_a_run_ends_with_a_line_a_measurement_and_a_checkpoint_even_between_periods(
    discs: Path, tmp_path: Path
) -> None:
    fit(discs, tmp_path, steps=7)
    assert list(losses(tmp_path)) == [4, 7]
    assert [row["step"] for row in read_metrics(tmp_path) if "held_out_loss" in row] == [6, 7]
    assert checkpoint_at(tmp_path, 7).is_dir()


def test_the_log_says_how_the_learning_rate_fell_and_how_fast_it_went(whole: Path) -> None:
    lines = [row for row in read_metrics(whole) if "loss" in row]
    assert lines[0]["lr"] > lines[1]["lr"] > lines[2]["lr"] > 0
    assert all(row["samples_s"] > 0 and 0 <= row["wait"] <= 1 and row["norm"] > 0 for row in lines)


def test_a_run_learns_what_there_is_to_learn(discs: Path, tmp_path: Path) -> None:
    long = {"steps": 150, "warmup": 10, "lr": 5e-3, "log_every": 10, "eval_every": 150, "save_every": 150}
    fit(discs, tmp_path, ema=0.9, **long)
    found = losses(tmp_path)
    assert found[150] < 0.4 * found[10]
    loader, _ = load(discs, discs.with_name("frames"))
    batch = loader.load(loader.rows[:20])
    fresh, trained = new_model(), read_policy(checkpoint_at(tmp_path, 150))[0]
    before, after = (measure(m, batch, loader.pipeline, 0) for m in (fresh, trained))
    assert after["action_error"] < 0.6 * before["action_error"]


def test_the_policy_that_is_saved_is_the_average_and_not_the_last_weights(whole: Path) -> None:
    folder = checkpoint_at(whole, 12)
    mean, both = load_file(folder / "model.safetensors"), load_file(folder / "train.safetensors")
    assert not torch.equal(mean["state_in.weight"], both["model.state_in.weight"])
    assert mean.keys() == {name.removeprefix("model.") for name in both if name.startswith("model.")}


def test_a_rate_that_is_far_too_high_ends_with_the_step_and_what_to_do(discs: Path, tmp_path: Path) -> None:
    with pytest.raises(
        TailorbirdError, match=r"step 1: the loss is (nan|inf)\..* a lower --train\.lr .*none were saved"
    ):
        fit(discs, tmp_path, lr=1e30)
    assert not (tmp_path / "checkpoints").exists()


def test_poisoned_actions_end_the_run_before_they_reach_the_weights(discs: Path, tmp_path: Path) -> None:
    loader, _ = load(discs, discs.with_name("frames"))
    loader.step, loader.act = 5, lambda: loader.data.action.fill(math.nan)  # the batch of step 5 is made
    with pytest.raises(TailorbirdError, match=r"step 6: .*nan.*episode \d, frame \d+.*: .*step-000005"):
        teach(CONFIG, new_model(), loader, tmp_path)
    saved = read_policy(checkpoint_at(tmp_path, 5))[0]
    assert all(value.isfinite().all() for value in saved.state_dict().values())


def test_a_batch_computed_in_parts_is_learned_from_as_a_whole(discs: Path, tmp_path: Path) -> None:
    for parts in (1, 3):
        fit(discs, tmp_path / str(parts), steps=1, accumulate=parts)
    whole, divided = (read_metrics(tmp_path / name)[1] for name in ("1", "3"))
    assert divided["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert divided["norm"] == pytest.approx(whole["norm"], rel=1e-5)
    with pytest.raises(ConfigError, match=r"self\.batch=6 does not fall into self\.accumulate=4 parts"):
        fit(discs, tmp_path / "4", accumulate=4)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_the_first_request_to_stop_is_noted_and_the_second_acts_at_once(kind: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with _stop_request() as stop:
        assert not stop.is_set()
        signal.raise_signal(kind)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_training_in_a_thread_leaves_the_signals_alone(discs: Path, tmp_path: Path) -> None:
    before, trained = signal.getsignal(signal.SIGINT), []
    seen = []
    thread = threading.Thread(
        target=lambda: trained.append(
            fit(discs, tmp_path, steps=3, at=1, act=lambda: seen.append(signal.getsignal(signal.SIGINT)))
        )
    )
    thread.start()
    thread.join()
    assert trained[0].finished
    assert seen == [before]


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, 0) for name in ("steps", "batch", "draws", "log_every", "eval_every", "save_every", "keep")]
    + [("lr", 0.0), ("clip", 0.0), ("ema", 1.0), ("ema", -0.1), ("held_out", 0.0), ("held_out", 1.0)],
)
def test_settings_that_cannot_work_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        VLATrainConfig(**{name: value})  # type: ignore[arg-type]
