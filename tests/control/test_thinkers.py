"""Thinking in a process of its own."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from tailorbird.control.thinkers import Elsewhere
from tailorbird.errors import ConnectionLost, DataError, TailorbirdError
from tailorbird.wire import ActionChunk, Observation


class Counting:
    """Actions are the process's number, its niceness, the calls since the last reset, and its seed."""

    def __init__(self) -> None:
        self.calls, self.seed = 0, -1

    def reset(self, seed: int) -> None:
        self.calls, self.seed = 0, seed

    def __call__(self, seen: Observation) -> ActionChunk:
        if seen.task == "fail":
            raise DataError("the camera is gone")
        if seen.task == "break":
            raise ZeroDivisionError("by nothing")
        if seen.task == "slow":
            time.sleep(0.05)
        self.calls += 1
        numbers = [os.getpid(), os.nice(0), self.calls, self.seed]
        return ActionChunk(actions=np.array([numbers], np.float64).astype(np.float32), time_s=seen.time_s)


def refuse(reason: str) -> Counting:
    raise DataError(reason)


@pytest.fixture(scope="module")
def other() -> Iterator[Elsewhere]:
    thinker = Elsewhere(Counting)
    yield thinker
    thinker.close()


def seen(task: str = "") -> Observation:
    images = {"top": np.zeros((300, 400, 3), np.uint8)}  # more than a pipe holds
    return Observation(images=images, state=np.zeros(2, np.float32), task=task, time_s=4.5)


def test_another_process_answers_and_gives_way_to_this_one(other: Elsewhere) -> None:
    assert not other.busy
    other.start(seen("slow"))
    assert other.busy
    assert other.poll() is None
    chunk = other.wait()
    assert not other.busy
    assert chunk.time_s == 4.5
    pid, nice, *_ = chunk.actions[0]
    assert int(pid) != os.getpid()
    assert nice == os.nice(0) + 10


def test_an_answer_that_is_ready_is_handed_out_once(other: Elsewhere) -> None:
    other.start(seen())
    end = time.monotonic() + 30
    while (chunk := other.poll()) is None and time.monotonic() < end:
        time.sleep(0.001)
    assert chunk is not None
    assert other.poll() is None


def test_an_episode_begins_there_too_and_what_was_in_the_making_is_dropped(other: Elsewhere) -> None:
    other.start(seen())
    other.reset(7)
    assert not other.busy
    other.start(seen())
    assert other.wait().actions[0, 2:].tolist() == [1, 7]


def test_an_episode_begins_although_the_last_answer_of_the_one_before_is_an_error(other: Elsewhere) -> None:
    other.start(seen("fail"))
    other.reset(2)
    other.start(seen())
    assert other.wait().actions[0, 3] == 2


def test_a_process_that_was_stopped_does_not_keep_the_loop_waiting() -> None:
    other = Elsewhere(Counting)
    other.start(seen())
    pid = int(other.wait().actions[0, 0])
    os.kill(pid, signal.SIGSTOP)
    big = replace(seen(), images={"top": np.zeros((900, 900, 3), np.uint8)})
    began = time.monotonic()
    other.start(big)
    assert other.poll() is None
    with pytest.raises(ConnectionLost, match=r"not answered for 0\.01 s"):
        other.wait(0.01)
    assert time.monotonic() - began < 1
    os.kill(pid, signal.SIGCONT)
    assert other.wait().actions.shape == (1, 4)
    other.close()


@pytest.mark.parametrize(
    ("task", "kind", "message"),
    [
        ("fail", DataError, "^the camera is gone$"),
        ("break", TailorbirdError, "ZeroDivisionError: by nothing"),
    ],
)
def test_what_is_raised_there_is_raised_here_and_the_next_call_works(
    other: Elsewhere, task: str, kind: type[Exception], message: str
) -> None:
    other.start(seen(task))
    with pytest.raises(kind, match=message):
        other.wait()
    other.start(seen())
    assert other.wait().actions.shape == (1, 4)


def test_a_policy_that_cannot_be_made_there_is_said_here() -> None:
    with pytest.raises(DataError, match="no such policy"):
        Elsewhere(partial(refuse, "no such policy"))


def test_a_process_that_died_is_an_error_and_no_endless_wait() -> None:
    other = Elsewhere(Counting)
    other.start(seen())
    os.kill(int(other.wait().actions[0, 0]), signal.SIGKILL)
    other._process.join()
    with pytest.raises(ConnectionLost, match="died without a word"):
        ask(other)
    other.close()


def ask(other: Elsewhere) -> None:
    other.start(seen())
    other.wait()
