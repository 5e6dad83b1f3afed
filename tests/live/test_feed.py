"""Looking on does not hold up what is looked at."""

import threading
import time

import pytest
from watched import TICKS, played

from tailorbird.errors import StorageError
from tailorbird.live import feed as feed_module
from tailorbird.live.feed import ROOM, Feed, Moment


class Notes:
    def __init__(self, fail_at: int = -1, gate: threading.Event | None = None) -> None:
        self.taken: list[int] = []
        self.pictured: list[int] = []
        self.closed = 0
        self._fail_at, self._gate = fail_at, gate

    def take(self, moment: Moment) -> None:
        if self._gate is not None:
            assert self._gate.wait(10)
        if moment.tick.number == self._fail_at:
            raise StorageError("the disk is full: free some space")
        self.taken.append(moment.tick.number)
        if moment.tick.seen is not None and moment.tick.seen.images:
            self.pictured.append(moment.tick.number)

    def close(self) -> None:
        self.closed += 1


def test_watchers_get_every_tick_in_order() -> None:
    notes = Notes(), Notes()
    with Feed(notes) as feed:
        played(feed.put)
    assert [one.taken for one in notes] == [list(range(TICKS))] * 2
    assert [one.closed for one in notes] == [1, 1]
    assert (feed.dropped, feed.failures) == (0, [])


def test_what_comes_too_fast_is_dropped_and_counted() -> None:
    gate, more = threading.Event(), 50
    notes = Notes(gate=gate)
    with Feed([notes]) as feed:
        _, moments, _ = played(feed.put)
        for _ in range(ROOM + more):
            feed.put(moments[0])  # returns at once, although nobody takes
        gate.set()
    assert feed.dropped in (TICKS + more - 1, TICKS + more)  # one may be in the watcher's hands
    assert len(notes.taken) == TICKS + ROOM + more - feed.dropped


def test_a_watcher_that_fails_is_left_out_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    broken, whole = Notes(fail_at=3), Notes()
    with Feed([broken, whole]) as feed:
        played(feed.put)
    assert broken.taken == [0, 1, 2]
    assert whole.taken == list(range(TICKS))
    assert (broken.closed, whole.closed) == (1, 1)
    assert feed.failures == ["the disk is full: free some space"]
    assert "no longer watching: the disk is full" in capsys.readouterr().out


def test_pictures_that_wait_for_a_slow_watcher_are_bounded_and_the_rest_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate, size = threading.Event(), 16 * 24 * 3 + 8 * 10 * 3
    monkeypatch.setattr(feed_module, "ROOM_BYTES", 3 * size)
    notes = Notes(gate=gate)
    with Feed([notes]) as feed:
        _, moments, _ = played(feed.put)
        gate.set()
    looked = [moment.tick.number for moment in moments if moment.tick.seen is not None]
    assert notes.taken == list(range(TICKS))
    assert len(notes.pictured) in (3, 4)  # one may be in the watcher's hands
    assert set(notes.pictured) < set(looked)
    assert feed.unpictured == len(looked) - len(notes.pictured)


@pytest.mark.parametrize("backlog", [0, ROOM + 2])
def test_a_watcher_that_hangs_is_named_and_not_waited_for(
    backlog: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(feed_module, "CLOSE_S", 0.05)
    gate = threading.Event()
    with Feed([Notes(gate=gate)]) as feed:
        _, moments, _ = played(feed.put)
        for _ in range(backlog):
            feed.put(moments[0])
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert ["the watchers hang" in failure for failure in feed.failures] == [True]
    assert "no longer watching: the watchers hang" in capsys.readouterr().out
    gate.set()
