"""The fast half of a policy over what the slow half saw before."""

import threading
from dataclasses import dataclass, field

import numpy as np
import pytest

from tailorbird.control.clock import SimClock
from tailorbird.control.reuse import Reuse
from tailorbird.control.thinkers import Background, Synchronous
from tailorbird.errors import ConfigError, DataError
from tailorbird.wire import ActionChunk, Observation


@dataclass(frozen=True)
class Seen:
    number: float
    time_s: float


@dataclass
class Halves:
    """Actions say which observation was looked at, and on whose state they are."""

    looked: list[float] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)

    def look(self, seen: Observation) -> Seen:
        self.looked.append(float(seen.state[0]))
        return Seen(float(seen.state[0]), seen.time_s)

    def act_on(self, scene: Seen, seen: Observation) -> ActionChunk:
        actions = np.array([[scene.number, seen.state[0]]], np.float32)
        return ActionChunk(actions=actions, time_s=seen.time_s, scene_time_s=scene.time_s)

    def reset(self, seed: int = 0) -> None:
        self.seeds.append(seed)


def run(
    times: list[float], *, delay_s: float, refresh_s: float = 0.0, tasks: str = ""
) -> tuple[list, Halves]:
    """Observations 0, 1, ... at the given times: which scene and which state each chunk is of."""
    clock, halves = SimClock(), Halves()
    reuse = Reuse(halves, Synchronous(halves.look, clock, delay_s), refresh_s)
    found = []
    for number, time_s in enumerate(times):
        clock.sleep_until(time_s)
        task = tasks[number] if tasks else "go"
        seen = Observation(images={}, state=np.array([number], np.float32), task=task, time_s=time_s)
        chunk = reuse(seen)
        assert chunk.time_s == time_s
        found.append(tuple(chunk.actions[0].tolist()))
    return found, halves


def test_the_first_scene_is_waited_for_and_later_ones_are_not() -> None:
    found, halves = run([0, 1, 2, 3, 4, 5], delay_s=1.5)
    assert found == [(0, 0), (0, 1), (0, 2), (1, 3), (1, 4), (3, 5)]
    assert halves.looked == [0, 1, 3, 5]


def test_a_scene_that_is_ready_at_once_is_used_from_the_next_call_on() -> None:
    assert run([0, 1, 2, 3], delay_s=0)[0] == [(0, 0), (0, 1), (1, 2), (2, 3)]


def test_a_scene_is_kept_until_it_is_as_old_as_it_may_be() -> None:
    found, halves = run([0, 1, 2, 3, 4, 5, 6, 7], delay_s=0, refresh_s=3)
    assert halves.looked == [0, 3, 6]
    assert [scene for scene, _ in found] == [0, 0, 0, 0, 3, 3, 3, 6]


def test_a_new_instruction_is_read_before_anything_is_done() -> None:
    found, halves = run([0, 1, 2, 3, 4], delay_s=10, tasks="aabbb")
    assert found == [(0, 0), (0, 1), (2, 2), (2, 3), (2, 4)]
    assert halves.looked == [0, 1, 2, 3]


def test_an_episode_sees_nothing_of_the_one_before() -> None:
    clock, halves = SimClock(), Halves()
    reuse = Reuse(halves, Synchronous(halves.look, clock, 1.5))
    for number in range(2):
        reuse(Observation(images={}, state=np.array([number], np.float32), task="go", time_s=number))
    reuse.reset(7)
    chunk = reuse(Observation(images={}, state=np.array([50], np.float32), task="go"))
    assert chunk.actions.tolist() == [[50, 50]]
    assert halves.seeds == [7]


def test_a_look_that_fails_leaves_nothing_of_another_instruction_to_act_on() -> None:
    clock, halves = SimClock(), Halves()

    def look(seen: Observation) -> Seen:
        if seen.task == "stop" and seen.time_s == 1:
            raise DataError("the camera is gone")
        return halves.look(seen)

    reuse = Reuse(halves, Synchronous(look, clock))
    first, second, third = (
        Observation(images={}, state=np.array([i], np.float32), task=task, time_s=i)
        for i, task in enumerate(("go", "stop", "stop"))
    )
    reuse(first)
    with pytest.raises(DataError):
        reuse(second)
    assert reuse(third).actions.tolist() == [[2, 2]]


def test_an_episode_begins_although_the_last_look_of_the_one_before_failed() -> None:
    fail, halves = threading.Event(), Halves()

    def look(seen: Observation) -> Seen:
        if fail.is_set():
            raise DataError("the camera is gone")
        return halves.look(seen)

    looker = Background(look)
    reuse = Reuse(halves, looker)
    reuse(Observation(images={}, state=np.zeros(1, np.float32), task="go"))
    fail.set()
    reuse(Observation(images={}, state=np.ones(1, np.float32), task="go", time_s=1))
    assert looker.busy
    reuse.reset(3)
    fail.clear()
    chunk = reuse(Observation(images={}, state=np.full(1, 9, np.float32), task="go", time_s=2))
    looker.close()
    assert chunk.actions.tolist() == [[9, 9]]
    assert halves.seeds == [3]


@pytest.mark.parametrize("refresh_s", [-1.0, float("nan")])
def test_an_age_that_cannot_be_is_refused(refresh_s: float) -> None:
    halves = Halves()
    with pytest.raises(ConfigError, match="cannot be negative"):
        Reuse(halves, Synchronous(halves.look, SimClock()), refresh_s)
