"""What many tests share: a command line, and one tiny dataset, recorded once a session."""

import os
from collections.abc import Callable
from pathlib import Path

# Tests run side by side: threads of several processes that wait for each other spin.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

from tailorbird.__main__ import main
from tailorbird.data.record import record
from tailorbird.data.record_config import RecordConfig
from tailorbird.sim.config import SimConfig

Typed = Callable[..., tuple[int | str | None, str]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full", action="store_true", help="run tests marked full too: minutes, some GB of memory"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Whatever -m says: `-m parity` alone must not start what takes minutes."""
    if config.getoption("--full"):
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """A test draws the same numbers alone and after others."""
    torch.manual_seed(0)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Run a command line. Returns how it ended, 0 or a message, and what it printed."""

    def run(*words: object) -> tuple[int | str | None, str]:
        monkeypatch.setattr("sys.argv", ["tailorbird", *map(str, words)])
        try:
            main()
        except SystemExit as end:
            return end.code, capsys.readouterr().out
        return 0, capsys.readouterr().out

    return run


@pytest.fixture(scope="session")
def recorded_config() -> RecordConfig:
    """Two quick tasks, six demonstrations, pictures of 48 px, disturbed as by default."""
    return RecordConfig(
        demos={"drawer-open-v3": 4, "button-press-topdown-v3": 2}, sim=SimConfig(size=48), crf=18
    )


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory, recorded_config: RecordConfig) -> Path:
    """A dataset made by two processes. Shared: copy it before changing it."""
    out = tmp_path_factory.mktemp("recorded") / "dataset"
    record(recorded_config, out, workers=2)
    return out
