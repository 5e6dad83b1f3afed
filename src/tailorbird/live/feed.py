"""From the control loop's thread to those who watch it, without making it wait."""

import queue
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from tailorbird.control.clock import Clock
from tailorbird.control.runtime import Robot, Tick
from tailorbird.control.safety import Action, Limits
from tailorbird.progress import console
from tailorbird.wire import Observation

ROOM = 256  # moments that may wait for the watchers: 2.5 s at 100 Hz
ROOM_BYTES = 64 << 20  # of their pictures
CLOSE_S = 5.0  # for the watchers to take the end of a run, and as much to close what they write


@dataclass(frozen=True, kw_only=True)
class Span:
    """What the robot did in a tick, or before the first one, by the loop's clock."""

    name: str
    began_s: float
    ended_s: float


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One tick of one episode, counted from 0, and what the robot did since the tick before."""

    episode: int
    tick: Tick
    spans: tuple[Span, ...]


class Watcher(Protocol):
    """Is called from one thread, which is not the loop's."""

    def take(self, moment: Moment) -> None: ...

    def close(self) -> None:
        """The run is over, or was broken off; called once."""


class Timed:
    """A robot whose observations and actions are timed."""

    def __init__(self, robot: Robot, clock: Clock) -> None:
        self.robot, self._clock = robot, clock
        self._spans: list[Span] = []

    @property
    def limits(self) -> Limits:
        return self.robot.limits

    def observe(self) -> Observation:
        began_s = self._clock.now()
        seen = self.robot.observe()
        self._spans.append(Span(name="observe", began_s=began_s, ended_s=self._clock.now()))
        return seen

    def act(self, action: Action) -> bool:
        began_s = self._clock.now()
        over = self.robot.act(action)
        self._spans.append(Span(name="act", began_s=began_s, ended_s=self._clock.now()))
        return over

    def take_spans(self) -> tuple[Span, ...]:
        """Those since the last call."""
        spans, self._spans = tuple(self._spans), []
        return spans


class Feed:
    """Hands every tick to all watchers, in a thread of its own. Use it as a context.

    Of ticks that come faster than the watchers take them, first the pictures are dropped, then all; both are
    counted. A watcher that fails is closed and named, and the robot goes on without it. At the end, watchers
    that hang are named and left behind.
    """

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self.dropped = self.unpictured = 0
        self._put_bytes = self._taken_bytes = 0  # each is of one thread
        self.failures: list[str] = []
        self._watchers = list(watchers)
        self._queue: queue.Queue[Moment | None] = queue.Queue(ROOM)
        self._thread = threading.Thread(target=self._work, name="watchers", daemon=True)

    def put(self, moment: Moment) -> None:
        seen, size, waiting = moment.tick.seen, _picture_bytes(moment), self._put_bytes - self._taken_bytes
        if seen is not None and waiting and waiting + size > ROOM_BYTES:
            moment = replace(moment, tick=replace(moment.tick, seen=replace(seen, images={})))
            self.unpictured += 1
            size = 0
        try:
            self._queue.put_nowait(moment)
            self._put_bytes += size
        except queue.Full:
            self.dropped += 1

    def __enter__(self) -> "Feed":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(queue.Full):
            self._queue.put(None, timeout=CLOSE_S)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self._give_up("the watchers hang: what they wrote still has its temporary name")

    def _work(self) -> None:
        while (moment := self._queue.get()) is not None:
            self._taken_bytes += _picture_bytes(moment)
            for watcher in list(self._watchers):
                try:
                    watcher.take(moment)
                except Exception as error:  # whatever fails in looking on, the robot goes on
                    self._watchers.remove(watcher)
                    self._close(watcher, error)
        for watcher in self._watchers:
            self._close(watcher, None)

    def _close(self, watcher: Watcher, cause: Exception | None) -> None:
        try:
            watcher.close()
        except Exception as error:
            cause = cause or error
        if cause is not None:
            self._give_up(str(cause))

    def _give_up(self, why: str) -> None:
        self.failures.append(why)
        console.print(f"no longer watching: {why}")


def _picture_bytes(moment: Moment) -> int:
    seen = moment.tick.seen
    return 0 if seen is None else sum(picture.nbytes for picture in seen.images.values())
