"""What thinks in a run: a server's policy, or one from a folder."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tailorbird.errors import ConnectionLost
from tailorbird.recipes.mind import Remote, load_mind
from tailorbird.recipes.run_config import RunConfig
from tailorbird.wire import Observation
from tiny_server import Server, serving, write_tiny

CFG = RunConfig(hz=20.0, timeout_s=5.0, device="cpu")
SEEN = Observation(
    images={"top": np.full((20, 24, 3), 90, np.uint8)}, state=np.zeros(4, np.float32), task="reach the cube"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with serving(folder) as server:
        yield server


def test_a_server_begins_the_seeds_episode_and_when_it_is_gone_its_last_chunk_is_played_out(
    server: Server,
) -> None:
    remote = Remote(server.url, CFG)
    chunks = []
    for seed in (3, 4, 3):
        remote.client.reset(seed)
        chunks.append(remote(SEEN).actions)
    assert np.array_equal(chunks[0], chunks[2])
    assert not np.array_equal(chunks[0], chunks[1])
    server.process.kill()
    server.process.wait()
    assert np.array_equal(remote(replace(SEEN, time_s=2 / 20)).actions, chunks[2][2:])
    with pytest.raises(ConnectionLost):
        Remote(server.url, replace(CFG, timeout_s=0.1))(SEEN)
    remote.client.close()


def test_with_reuse_pictures_are_read_again_when_they_are_as_old_as_was_asked(folder: Path) -> None:
    mind = load_mind(str(folder), replace(CFG, mode="reuse", refresh_s=1.0))
    scenes = []
    for time_s in (0.0, 0.9, 1.0):
        scenes.append(mind(replace(SEEN, time_s=time_s)).scene_time_s)
    assert scenes == [0.0, 0.0, 0.0]  # the next one is read in the background from here on
    for _ in range(1000):
        if (newest := mind(replace(SEEN, time_s=1.5)).scene_time_s) != 0.0:
            break
    assert newest == 1.0
