"""Clients that other people wrote, over a socket, with a server in a process of its own.

What they are is in clients.txt, and in an environment of their own: openpi's does not admit our NumPy.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tailorbird.infer.policy import Policy, load_policy
from tailorbird.wire import Observation
from tiny_server import Server, serving, write_tiny

HERE = Path(__file__).parent
PYTHON = HERE.parents[1] / ".venv-clients/bin/python"
KEY, CHUNK = "a-key-that-nobody-guesses", 7
NUM = 9  # observations: one more than a chunk, and one more


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("served") / "policy")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder) as one:
        yield one


@pytest.fixture
def policy(folder: Path) -> Policy:
    """At the start of an episode, as every session of the server is."""
    return load_policy(folder, device="cpu")


@pytest.fixture
def seen(tmp_path: Path) -> list[Observation]:
    """What the clients will see; the file is theirs."""
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (NUM, 11, 13, 3), np.uint8)
    states = rng.normal(size=(NUM, 4)).astype(np.float32)
    np.savez(tmp_path / "seen.npz", images=images, states=states)
    return [
        Observation(images={"top": image}, state=state, task="reach the cube")
        for image, state in zip(images, states, strict=True)
    ]


def run(script: str, *words: object) -> subprocess.CompletedProcess[str]:
    assert PYTHON.exists(), "there are no other people's clients yet: run `make .venv-clients/done`"
    command = [PYTHON, HERE / script, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def answers_of(script: str, folder: Path, *words: object) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """The actions that a client got, and what it says about them."""
    done = run(script, *words, folder / "seen.npz", folder / "answers.npz")
    assert done.returncode == 0, done.stderr
    return np.load(folder / "answers.npz")["actions"], json.loads(done.stdout)


def test_openpis_client_gets_the_policys_own_chunks(
    folder: Path, policy: Policy, seen: list[Observation], tmp_path: Path
) -> None:
    with serving(folder, keys=[KEY]) as server:
        actions, said = answers_of("openpi_peer.py", tmp_path, server.url, KEY)
        wrong = [
            run("openpi_peer.py", server.url, key, tmp_path / "seen.npz", "-") for key in ("", KEY + "!")
        ]
    assert actions.shape == (NUM, CHUNK, 2)
    np.testing.assert_allclose(actions, [policy.act(one).actions for one in seen], rtol=1e-5, atol=1e-5)
    assert "metadata" in said["metadata"]
    assert {"infer_ms", "prev_total_ms"} <= said["timings"][1].keys()
    assert all(one["infer_ms"] > 0 for one in said["timings"])
    for one in wrong:
        assert one.returncode == 1
        assert "HTTP 401" in one.stderr


def test_vla_eval_gets_one_action_after_the_other(
    server: Server, policy: Policy, seen: list[Observation], tmp_path: Path
) -> None:
    """Its own runner waits for each; an episode begins with the same noise as the one before."""
    actions, said = answers_of("vlaeval_peer.py", tmp_path, server.url, "sync", NUM)
    due = np.concatenate([policy.act(seen[0]).actions, policy.act(seen[CHUNK]).actions])[:NUM]
    np.testing.assert_allclose(actions, np.concatenate([due, due]), rtol=1e-5, atol=1e-5)
    assert [one["steps"] for one in said["episodes"]] == [NUM, NUM]
    assert said["info"]["protocol_version"] == 1


def test_vla_evals_live_runner_is_kept_supplied(
    server: Server, policy: Policy, seen: list[Observation], tmp_path: Path
) -> None:
    """Its clock does not wait: what the robot did is the policy's or holding, and mostly the policy's."""
    np.savez(tmp_path / "seen.npz", images=[seen[0].images["top"]], states=[seen[0].state])
    actions, said = answers_of("vlaeval_peer.py", tmp_path, server.url, "live", 40)
    acted = actions[np.isfinite(actions).all(1)]
    possible = np.concatenate([policy.act(seen[0]).actions for _ in range(40)])
    apart = np.abs(acted[:, None] - possible[None]).max(-1).min(-1)
    assert apart.max() < 1e-5
    assert len(acted) > len(actions) / 2, said
    assert all(one["rt_metrics"]["update_count"] > 0 for one in said["episodes"])
