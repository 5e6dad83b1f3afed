"""inspect-robots itself finds our policies by name, and drives its cube world with them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import inspect_robots
import numpy as np
import pytest
from inspect_robots.registry import resolve

from tailorbird.errors import ConfigError, DataError
from tiny_server import serving, write_tiny

KEY = "a-key-that-nobody-guesses"
STATE, CHUNK = "eef_pos,cube_pos", 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("served") / "policy")


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with serving(folder, keys=[KEY]) as server:
        yield server.url


def actions_of(model: object, logs: Path, **settings: Any) -> list[list[float]]:
    """Everything that the cube world was told, two scenes long."""
    task = resolve("task", "cubepick-reach", num_scenes=2, max_steps=10)
    policy = resolve("policy", "tailorbird", model=str(model), state=STATE, **settings)
    (log,) = inspect_robots.eval(task, policy, "cubepick", log_dir=str(logs))
    assert log.status == "success", log
    lines = [line for path in sorted(logs.rglob("*.jsonl")) for line in path.read_text().splitlines()]
    return [found["action"] for line in lines if "action" in (found := json.loads(line))]


def test_the_cube_world_is_told_the_same_in_process_and_through_a_server(
    folder: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAILORBIRD_API_KEY", KEY)
    here, there = actions_of(folder, tmp_path / "a", device="cpu"), actions_of(url, tmp_path / "b")
    assert len(here) > CHUNK
    np.testing.assert_allclose(here, there, rtol=1e-5, atol=1e-5)


def test_it_says_what_it_wants_and_how_far_it_plans(folder: Path) -> None:
    policy = resolve("policy", "tailorbird", model=str(folder), state=STATE, device="cpu", execute=3)
    assert isinstance(policy, inspect_robots.Policy)
    assert policy.config.action_horizon == 3
    assert policy.info.observation_space.camera_names == {"top"}
    assert policy.info.action_space.dim == 2
    seen = inspect_robots.Observation(images={}, state={"eef_pos": np.zeros(2)})
    with pytest.raises(DataError, match=r"the embodiment has no \['cube_pos'\]: it feels \['eef_pos'\]"):
        policy.act(seen)


def test_a_server_lets_nobody_in_without_its_key(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILORBIRD_API_KEY", KEY + "!")
    with pytest.raises(ConfigError, match="it does not know the key"):
        resolve("policy", "tailorbird", model=url, state=STATE)
