"""The load benchmark, on a tiny policy and for seconds: what it says is whole, and the faults are real."""

import sys
from pathlib import Path
from typing import Any

import pytest

from tailorbird.perf.results import tables
from tailorbird.provenance import stamp
from tailorbird.storage import write_json
from tiny_server import write_tiny

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
from server_load import Plan, jain, measure


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    policy = write_tiny(tmp_path_factory.mktemp("served") / "policy", action_dim=4, cameras=("corner2",))
    return measure(policy, Plan(robots=5, seconds=3.0, away_s=0.2, faults_s=4.5, copies=()))


def test_every_robot_is_answered_and_comes_back_after_a_kill(result: dict[str, Any]) -> None:
    served, busy = result["rows"]
    assert served["errors"] == busy["errors"] == 0
    assert served["answers"] >= 5
    assert result["faults"]["recovered"] == result["faults"]["robots"] == 5
    assert result["faults"]["old_episode_chunks"] == 0
    assert {one["what"]: one["met"] for one in result["targets"]}["robots that recover from a kill"]


def test_the_command_prints_what_was_stored(result: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "server_load.json", {**result, **stamp("make bench-server")})
    *_, source = tables(tmp_path, "server")
    assert str(source).startswith("make bench-server, commit ")


def test_fairness_is_one_when_all_get_the_same() -> None:
    assert jain([3.0, 3.0]) == 1.0
    assert jain([3.0, 0.0, 0.0]) == pytest.approx(1 / 3)
