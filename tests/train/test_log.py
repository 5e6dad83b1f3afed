"""metrics.jsonl and TensorBoard's files."""

import importlib.util
import os
import resource
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tailorbird.errors import ConfigError, DataError, StorageError
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


CONTINUED = """
import sys
from pathlib import Path
from tailorbird.train.log import Metrics
run = Path(sys.argv[1])
with Metrics(run, 0, ("tensorboard", sys.argv[2])) as metrics:
    for step in (1, 2):
        metrics.add(step, loss=step / 8)
with Metrics(run, 2, (sys.argv[2],)) as metrics:
    metrics.add(3, loss=0.75)
"""


def say_elsewhere(run: Path, name: str) -> None:
    """Three rows, and an interruption after the second, in another process: both packages keep threads."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install 'tailorbird[{name}]'")
    run.mkdir()
    quiet = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "TRACKIO_DIR": str(run / "trackio")}
    done = subprocess.run(
        [sys.executable, "-c", CONTINUED, str(run), name],
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_weights_and_biases_gets_every_row_without_a_network(tmp_path: Path) -> None:
    say_elsewhere(tmp_path / "run", "wandb")
    first, second = sorted((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"))
    assert first.name == second.name  # one run, continued
    assert [b"0.125" in first.read_bytes(), b"0.75" in second.read_bytes()] == [True, True]
    assert len(read_metrics(tmp_path / "run")) == 3


def test_trackio_gets_every_row_on_this_machine(tmp_path: Path) -> None:
    say_elsewhere(tmp_path / "run", "trackio")
    with sqlite3.connect(tmp_path / "run/trackio/tailorbird.db") as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
    database.close()
    assert [step for _, step, _ in rows] == [1, 2, 3]
    assert len({name for name, _, _ in rows}) == 1  # one run, continued
    assert "0.75" in str(rows[2][2])


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_logger_that_is_not_installed_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"--train\.log {name} needs {name} .*tailorbird\[{name}\]"):
        Metrics(tmp_path / "run", 0, ("tensorboard", name))
    assert not (tmp_path / "run/metrics.jsonl").exists()
