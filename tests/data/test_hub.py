"""Fetching datasets by name: the real client of the hub, against a small server that speaks like it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hub import environment, serving
from synthetic import make_demo, write_dataset

ID = "someone/toy-arm"


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def endpoint(tmp_path: Path, asked: list[str]) -> Iterator[str]:
    write_dataset(tmp_path / "remote", range(2))
    with serving(tmp_path / "remote", "datasets", ID, asked) as address:
        yield address


FETCH = """
import json, sys
from tailorbird.data.lerobot import LeRobotDataset, find_dataset
from tailorbird.errors import DataError
try:
    root = find_dataset(*sys.argv[1:])
    data = LeRobotDataset(root)
    frames = sum(len(list(data.frames(episode, "wrist"))) for episode in data.episodes)
    print(json.dumps({"root": str(root), "action": data.action.tolist(), "frames": frames}))
except DataError as error:
    print(json.dumps({"error": str(error)}))
"""


def fetch(home: Path, endpoint: str, *args: str) -> dict[str, object]:
    command = [sys.executable, "-c", FETCH, *args]
    done = subprocess.run(
        command, env=environment(home, endpoint), capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_dataset_is_fetched_by_name_once_and_then_found_without_the_hub(
    tmp_path: Path, endpoint: str, asked: list[str]
) -> None:
    home = tmp_path / "home"
    found = fetch(home, endpoint, ID)
    expected = np.concatenate([make_demo(seed).action for seed in range(2)])
    np.testing.assert_array_equal(np.array(found["action"], np.float32), expected)
    assert found["frames"] == len(expected)
    assert str(found["root"]).startswith(str(home))
    loads = sum("/resolve/" in path for path in asked)
    assert loads >= 7
    assert fetch(home, endpoint, ID, "v3.0") == found
    assert sum("/resolve/" in path for path in asked) == loads, "nothing is fetched twice"
    assert fetch(home, "http://127.0.0.1:9", ID) == found, "without the hub, what was fetched is used"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("someone/else",), "someone/else is no folder here, and the hub did not give it"),
        ((ID, "v9"), f"{ID} is no folder here, and the hub did not give it"),
        (("no such/name!",), "no such/name! is no folder here, and the hub did not give it"),
    ],
    ids=["name", "revision", "impossible name"],
)
def test_what_the_hub_does_not_have_is_one_clear_error(
    tmp_path: Path, endpoint: str, args: tuple[str, ...], message: str
) -> None:
    assert str(fetch(tmp_path / "home", endpoint, *args)["error"]).startswith(message)


def test_no_hub_at_all_is_one_clear_error(tmp_path: Path) -> None:
    found = fetch(tmp_path / "home", "http://127.0.0.1:9", ID)
    assert str(found["error"]).startswith(f"{ID} is no folder here, and the hub did not give it")
