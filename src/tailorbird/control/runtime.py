"""A fixed-rate loop that executes chunks, and two ways to get the next one: at once or in the background."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tailorbird.control.chunks import ChunkQueue
from tailorbird.errors import ConfigError
from tailorbird.wire import ActionChunk, Observation

Think = Callable[[Observation], ActionChunk]
Action = NDArray[np.float32]  # (A,), physical units
LATE_S = 2e-3  # a tick that begins later than this after its time counts as an overrun


class Robot(Protocol):
    def observe(self) -> Observation: ...

    def act(self, action: Action) -> bool:
        """Execute one action for one tick. True ends the episode: the task is done."""

    def hold(self, last: Action) -> Action:
        """What to do while there is no action: for displacements zero, for positions the last one."""


class Clock(Protocol):
    def now(self) -> float:
        """Seconds, monotonic."""

    def sleep_until(self, time_s: float) -> None: ...


class RealClock:
    def now(self) -> float:
        return time.perf_counter()

    def sleep_until(self, time_s: float) -> None:
        time.sleep(max(0.0, time_s - time.perf_counter()))


class SimClock:
    """Time passes only while somebody sleeps. For simulations as fast as they go, and for tests."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        return self._now

    def sleep_until(self, time_s: float) -> None:
        self._now = max(self._now, time_s)


class Thinker(Protocol):
    """Has at most one chunk in the making."""

    @property
    def busy(self) -> bool: ...

    def start(self, seen: Observation) -> None: ...

    def poll(self) -> ActionChunk | None:
        """The chunk if it is ready. It is handed out once."""

    def wait(self) -> ActionChunk:
        """The chunk, however long it takes."""


class Synchronous:
    """Thinks while the robot waits, or as if it took `delay_s` of the clock's time: exact and repeatable."""

    def __init__(self, think: Think, clock: Clock, delay_s: float = 0.0) -> None:
        self._think, self._clock, self._delay_s = think, clock, delay_s
        self._chunk: ActionChunk | None = None
        self._ready_s = 0.0

    @property
    def busy(self) -> bool:
        return self._chunk is not None

    def start(self, seen: Observation) -> None:
        self._chunk, self._ready_s = self._think(seen), self._clock.now() + self._delay_s

    def poll(self) -> ActionChunk | None:
        if self._clock.now() < self._ready_s:
            return None
        chunk, self._chunk = self._chunk, None
        return chunk

    def wait(self) -> ActionChunk:
        self._clock.sleep_until(self._ready_s)
        chunk = self.poll()
        assert chunk is not None
        return chunk


class Background:
    """Thinks in a thread of its own while the robot goes on with the chunk at hand."""

    def __init__(self, think: Think) -> None:
        self._think = think
        self._pool = ThreadPoolExecutor(1)
        self._future: Future[ActionChunk] | None = None

    @property
    def busy(self) -> bool:
        return self._future is not None

    def start(self, seen: Observation) -> None:
        self._future = self._pool.submit(self._think, seen)

    def poll(self) -> ActionChunk | None:
        return self.wait() if self._future is not None and self._future.done() else None

    def wait(self) -> ActionChunk:
        assert self._future is not None
        future, self._future = self._future, None
        return future.result()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """hz: ticks a second.

    execute: age in ticks at which a chunk is replaced. max_ticks: length of an episode.
    """

    hz: float
    execute: int
    max_ticks: int

    def __post_init__(self) -> None:
        if not self.hz > 0 or self.execute < 1 or self.max_ticks < 1:
            raise ConfigError(f"rate, execute and max_ticks must be positive: {self}")


@dataclass(kw_only=True)
class Trace:
    """What happened, tick by tick."""

    solved: bool = False
    actions: list[Action] = field(default_factory=list)
    ages: list[int] = field(default_factory=list)  # ticks between the observation and the action it led to
    held: int = 0  # ticks without an action at hand
    late: int = 0  # ticks that began after their time
    chunk_ms: list[float] = field(default_factory=list)  # cost of each chunk
    seconds: float = 0.0  # of the clock, from the first tick to the end of the last


def drive(robot: Robot, thinker: Thinker, clock: Clock, cfg: LoopConfig) -> Trace:
    """One episode.

    The ticks are at start + n / hz, so delays do not add up; a lost period is not made up for.
    """
    queue, trace, asked_at = ChunkQueue(), Trace(), 0

    def take(chunk: ActionChunk) -> None:
        queue.put(chunk, asked_at)
        trace.chunk_ms.append(sum(chunk.infer_ms.values()))

    thinker.start(robot.observe())
    take(thinker.wait())
    began = start = clock.now()
    last: Action | None = None
    for tick in range(cfg.max_ticks):
        due = start + tick / cfg.hz
        clock.sleep_until(due)
        delay = clock.now() - due
        trace.late += delay > LATE_S
        if delay > 1 / cfg.hz:
            start += delay
        if not thinker.busy and (queue.age(tick) >= cfg.execute or not queue.left(tick)):
            asked_at = tick
            thinker.start(robot.observe())
        if (chunk := thinker.poll()) is not None:
            take(chunk)
        action = queue.get(tick)
        if action is None:
            trace.held += 1
            assert last is not None  # tick 0 always has an action
            action = robot.hold(last)
        last = action
        trace.actions.append(action)
        trace.ages.append(queue.age(tick))
        if robot.act(action):
            trace.solved = True
            break
    clock.sleep_until(start + len(trace.actions) / cfg.hz)
    trace.seconds = clock.now() - began
    return trace
