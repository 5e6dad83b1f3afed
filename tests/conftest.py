"""What many tests share: one tiny dataset, recorded once a session."""

import os
from pathlib import Path

# Tests run side by side: threads of several processes that wait for each other spin.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest

from tailorbird.data.config import RecordConfig
from tailorbird.data.record import record
from tailorbird.sim.config import SimConfig


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
