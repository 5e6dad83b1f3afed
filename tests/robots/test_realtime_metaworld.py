"""The simulator as a machine in real time: it goes on whatever its driver does."""

import time
from collections.abc import Callable, Iterator
from multiprocessing import shared_memory

import numpy as np
import pytest

from tailorbird.control.clock import RealClock
from tailorbird.control.config import LoopConfig
from tailorbird.control.runtime import drive
from tailorbird.control.thinkers import Background
from tailorbird.errors import ConfigError, SimulatorError
from tailorbird.robots.metaworld import RealTimeConfig, RealTimeSim
from tailorbird.wire import ActionChunk, Observation

CFG = RealTimeConfig(task="push-v3", cameras=("corner2", "topview"), size=32, nice=0)


@pytest.fixture(scope="module")
def robot() -> Iterator[RealTimeSim]:
    sim = RealTimeSim(CFG)
    yield sim
    sim.close()


def until(is_true: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not (found := is_true()) and time.monotonic() < end:
        time.sleep(0.005)
    return found


def test_its_cameras_stream_although_nobody_commands_it(robot: RealTimeSim) -> None:
    first = robot.observe()
    assert first.images.keys() == first.image_time_s.keys() == {"corner2", "topview"}
    assert {picture.shape for picture in first.images.values()} == {(32, 32, 3)}
    assert not np.array_equal(first.images["corner2"], first.images["topview"])
    assert all(picture.std() > 5 for picture in first.images.values())

    def all_newer() -> bool:
        now = robot.observe()
        return all(now.image_time_s[name] > first.image_time_s[name] for name in now.images)

    assert until(all_newer)
    assert all(taken <= time.perf_counter() for taken in robot.observe().image_time_s.values())


def test_a_command_is_executed_until_the_next_one(robot: RealTimeSim) -> None:
    start = robot.observe().state
    robot.act(np.array([0, 0, 1, 0], np.float32))
    assert until(lambda: bool(robot.observe().state[2] > start[2] + 0.03))
    robot.act(np.array([0, 0, -1, 0], np.float32))
    high = robot.observe().state
    assert until(lambda: bool(robot.observe().state[2] < high[2] - 0.03))


def test_pictures_that_were_handed_out_do_not_change(robot: RealTimeSim) -> None:
    robot.act(np.array([1, 1, 1, 0], np.float32))
    seen = robot.observe()
    kept = {name: picture.copy() for name, picture in seen.images.items()}
    later = max(seen.image_time_s.values()) + 0.3
    assert until(lambda: min(robot.observe().image_time_s.values()) > later)
    for name, picture in seen.images.items():
        np.testing.assert_array_equal(picture, kept[name])


def test_it_is_driven_faster_than_it_steps(robot: RealTimeSim) -> None:
    def think(seen: Observation) -> ActionChunk:
        return ActionChunk(actions=np.zeros((9, 4), np.float32), time_s=seen.time_s)

    thinker = Background(think)
    try:
        trace = drive(robot, thinker, RealClock(), LoopConfig(hz=100, execute=3, max_ticks=30))
    finally:
        thinker.close()
    assert len(trace.actions) == 30
    assert trace.seconds < 3  # 0.3 on an idle machine


def test_closing_leaves_no_process_and_no_memory() -> None:
    sim = RealTimeSim(CFG)
    name, process = sim._memory.name, sim._process
    sim.close()
    assert not process.is_alive()
    with pytest.raises(FileNotFoundError):
        shared_memory.SharedMemory(name)


def test_a_simulator_that_dies_is_noticed_in_the_next_tick() -> None:
    sim = RealTimeSim(CFG)
    try:
        sim._process.kill()
        sim._process.join()
        with pytest.raises(SimulatorError, match="has died"):
            sim.act(np.zeros(4, np.float32))
        with pytest.raises(SimulatorError, match="has died"):
            sim.observe()
    finally:
        sim.close()


def test_what_it_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="no task 'fly'"):
        RealTimeConfig(task="fly")
    with pytest.raises(ConfigError, match="each once"):
        RealTimeConfig(task="push-v3", cameras=("topview", "topview"))


def test_a_simulator_that_cannot_start_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SimulatorError, match="did not start"):
        RealTimeSim(RealTimeConfig(task="push-v3", cameras=("keyhole",), size=32))
    assert "no camera 'keyhole'" in capfd.readouterr().err
