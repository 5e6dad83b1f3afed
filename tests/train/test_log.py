"""metrics.jsonl and TensorBoard's files."""

import resource
import sys
from pathlib import Path

import pytest

from tailorbird.errors import DataError, StorageError
from tailorbird.train.log import Metrics, read_metrics


@pytest.fixture
def without_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were not installed."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)


def test_rows_are_there_as_soon_as_they_are_added(tmp_path: Path) -> None:
    with Metrics(tmp_path / "run", 0) as metrics:
        metrics.add(1, loss=0.5, lr=1e-3)
        metrics.add(2, held_out_loss=0.25)
        assert read_metrics(tmp_path / "run") == [
            {"step": 1, "loss": 0.5, "lr": 1e-3},
            {"step": 2, "held_out_loss": 0.25},
        ]


def test_a_run_without_metrics_has_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


def test_continuing_drops_the_rows_that_will_be_made_again(tmp_path: Path) -> None:
    with Metrics(tmp_path, 0) as metrics:
        for step in range(1, 6):
            metrics.add(step, loss=float(step))
    with Metrics(tmp_path, 3) as metrics:
        metrics.add(4, loss=40.0)
    assert [row["loss"] for row in read_metrics(tmp_path)] == [1.0, 2.0, 3.0, 40.0]


@pytest.mark.parametrize("cut", [1, 7, 12])
def test_a_last_line_that_was_cut_short_is_left_out(tmp_path: Path, cut: int) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n' + '{"step": 2, "loss": 1.0}'[:cut])
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]
    with Metrics(tmp_path, 5) as metrics:
        metrics.add(6, loss=3.0)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 6]


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2, is damaged.*Remove that line"):
        read_metrics(tmp_path)


def test_a_row_that_does_not_fit_on_the_disk_is_a_storage_error_and_the_rows_before_stay(
    tmp_path: Path, without_tensorboard: None
) -> None:
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Metrics(tmp_path, 0) as metrics:
        metrics.add(1, loss=0.5)
        room = metrics.path.stat().st_size + 3
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, unlimited[1]))
        try:
            with pytest.raises(StorageError, match=r"cannot write .*metrics\.jsonl .* raise the limit"):
                metrics.add(2, loss=0.25)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    with Metrics(tmp_path, 0) as metrics:
        metrics.add(3, loss=0.5, lr=0.25)
    (file,) = (tmp_path / "tensorboard").iterdir()
    events = [event for event in EventFileLoader(str(file)).Load() if event.summary.value]
    found = {(e.step, v.tag, v.tensor.float_val[0]) for e in events for v in e.summary.value}
    assert found == {(3, "loss", 0.5), (3, "lr", 0.25)}


def test_a_run_without_tensorboard_still_has_its_rows(tmp_path: Path, without_tensorboard: None) -> None:
    with Metrics(tmp_path, 0) as metrics:
        metrics.add(1, loss=0.5)
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]
    assert not (tmp_path / "tensorboard").exists()
