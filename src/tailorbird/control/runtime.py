"""A fixed-rate loop that executes chunks, and asks for the next one in time."""

from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import ceil, nan
from typing import Protocol

from tailorbird.control.chunks import ChunkQueue, Ensemble
from tailorbird.control.clock import Clock
from tailorbird.control.config import LoopConfig
from tailorbird.control.safety import Action, Guard, Limits
from tailorbird.control.thinkers import Thinker, drop_answer
from tailorbird.errors import ConnectionLost, DataError, TailorbirdError
from tailorbird.wire import ActionChunk, Committed, Observation

Thought = tuple[Observation | None, ActionChunk | None]  # asked, and answered
KEPT = 200_000  # ticks whose figures a trace keeps: half an hour at 100 Hz; a robot may run for days
LATE_S = 2e-3  # a tick that begins later than this after its time counts as an overrun
DELAYS = 10  # of the last chunks, of which the longest is expected next, as in arXiv 2506.07339


class Robot(Protocol):
    @property
    def limits(self) -> Limits: ...

    def observe(self) -> Observation: ...

    def act(self, action: Action) -> bool:
        """Execute one action for one tick. True ends the episode: the task is done."""


@dataclass(frozen=True, kw_only=True)
class Tick:
    """What happened in one tick. Times are the clock's.

    age_s, scene_age_s: since the observation whose state the action answers, and since the oldest picture
        behind it; nan when there was no action at hand.
    left: actions at hand after this one.
    seen: taken in this tick. chunk: arrived in it, `asked_s` its observation's time, else nan.
    """

    number: int
    due_s: float
    began_s: float
    ended_s: float
    action: Action
    held: bool
    age_s: float
    scene_age_s: float
    left: int
    interventions: tuple[str, ...]
    seen: Observation | None
    chunk: ActionChunk | None
    asked_s: float


@dataclass(kw_only=True)
class Trace:
    """An episode, tick by tick; of a long one the lists have the last, KEPT of each at most."""

    solved: bool = False
    ticks: int = 0
    actions: list[Action] = field(default_factory=list)
    age_s: list[float] = field(default_factory=list)
    scene_age_s: list[float] = field(default_factory=list)
    switches: list[int] = field(default_factory=list)  # ticks at which a chunk took over
    held: int = 0  # ticks without an action at hand
    late: int = 0  # ticks that began after their time
    lost: int = 0  # ticks that never were, because the one before began whole periods late
    chunk_ms: list[float] = field(default_factory=list)  # cost of each chunk
    latency_s: list[float] = field(default_factory=list)  # of each chunk, from its observation to its arrival
    interventions: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)  # what the policy said instead of a chunk
    seconds: float = 0.0  # of the clock, from the first tick to the end of the last

    def forget(self) -> None:
        """Drop the older half of every list that has grown too long."""
        for values in vars(self).values():
            if isinstance(values, list) and len(values) > KEPT:
                del values[: KEPT // 2]


def drive(
    robot: Robot,
    thinker: Thinker[ActionChunk],
    clock: Clock,
    cfg: LoopConfig,
    *,
    guard: Guard | None = None,
    watch: Callable[[Tick], None] | None = None,
) -> Trace:
    """One episode.

    The ticks are at start + n / hz, so delays do not add up; a lost period is left out, not made up for.

    Args:
        guard: by default one with the robot's limits.
        watch: called at the end of each tick, in the loop's time.
    Raises:
        TailorbirdError: the robot's, or the policy's: for its first chunk, and later if the configuration
            says so.
    """
    loop = _Loop(robot, thinker, clock, cfg, guard or Guard(robot.limits, cfg.hz))
    drop_answer(thinker, cfg.answer_s)
    thinker.start(seen := loop.ask(0))
    first = seen, loop.take(0, thinker.wait(cfg.answer_s))
    trace, began = loop.trace, clock.now()
    start = began
    try:
        for number in range(cfg.max_ticks):
            due = start + number / cfg.hz
            clock.sleep_until(due)
            delay = clock.now() - due
            if delay > LATE_S:
                trace.late += 1
                loop.guard.missed()
            if (lost := int(delay * cfg.hz)) > 0:
                trace.lost += lost
                start += lost / cfg.hz
            tick = loop.step(number, due, due + delay, first if number == 0 else (None, None))
            if watch is not None:
                watch(tick)
            if trace.solved:
                break
        clock.sleep_until(start + trace.ticks / cfg.hz)
    finally:
        if cfg.halt:
            loop.halt()
    trace.seconds = clock.now() - began
    return trace


class _Loop:
    """What a tick does."""

    def __init__(
        self, robot: Robot, thinker: Thinker[ActionChunk], clock: Clock, cfg: LoopConfig, guard: Guard
    ) -> None:
        self.robot, self.thinker, self.clock, self.cfg, self.guard = robot, thinker, clock, cfg, guard
        self.trace = Trace()
        self._chunks = Ensemble() if cfg.ensemble else ChunkQueue()
        self._delays: deque[int] = deque(maxlen=DELAYS)
        self._asked_at, self._asked_s, self._silent = (
            0,
            0.0,
            False,
        )  # of the last observation; no answer to it

    def ask(self, tick: int) -> Observation:
        now, seen, rest = self.clock.now(), self.robot.observe(), self._chunks.rest(tick)
        if self.cfg.mode == "rtc" and len(rest):
            seen = replace(seen, committed=Committed(actions=rest, frozen=max(self._delays)))
        self._asked, self._asked_at, self._asked_s, self._silent = seen, tick, now, False
        return seen

    def take(self, tick: int, chunk: ActionChunk) -> ActionChunk:
        """Put it into the queue, where its times are those of the loop's clock."""
        shape, width = chunk.actions.shape, len(self.guard.limits.names)
        if len(shape) != 2 or shape[1] != width:
            raise DataError(f"the policy's actions are {shape}, the robot takes (L, {width})")
        asked_s, latency_s = self._asked_s, self.clock.now() - self._asked_s
        scene_s = chunk.time_s if chunk.scene_time_s is None else chunk.scene_time_s
        past_s, scene_past_s = (self._asked.time_s - value for value in (chunk.time_s, scene_s))
        own = replace(chunk, time_s=asked_s - past_s, scene_time_s=asked_s - scene_past_s)
        self._chunks.put(own, tick if self.cfg.mode == "sync" else self._asked_at)
        waited = not self._delays  # for the first one; the next ones would have let so many ticks pass
        self._delays.append(ceil(latency_s * self.cfg.hz - 1e-6) if waited else tick - self._asked_at)
        self.guard.succeeded()
        self.trace.switches.append(tick)
        self.trace.chunk_ms.append(sum(chunk.infer_ms.values()))
        self.trace.latency_s.append(latency_s)
        return chunk

    def halt(self) -> None:
        """Leave the robot with a command that it may go on with."""
        with suppress(TailorbirdError):  # of a robot that is gone, which was raised already
            self.robot.act(self.guard.halt())

    def step(self, number: int, due_s: float, began_s: float, first: Thought) -> Tick:
        """first: what was asked and answered before this tick, if nothing was since."""
        trace, chunks = self.trace, self._chunks
        seen, chunk = first if first[1] is not None else self._think(number)
        waits = self.cfg.mode == "sync" and self.thinker.busy
        wanted, source = (None, None) if waits else (chunks.get(number), chunks.source(number))
        age_s = scene_age_s = nan
        if source is not None and source.scene_time_s is not None:
            age_s, scene_age_s = began_s - source.time_s, began_s - source.scene_time_s
        action, interventions = self.guard(wanted, age_s, scene_age_s)
        trace.ticks += 1
        trace.held += wanted is None
        trace.actions.append(action)
        trace.age_s.append(age_s)
        trace.scene_age_s.append(scene_age_s)
        trace.interventions.update(interventions)
        trace.forget()
        trace.solved = self.robot.act(action)
        return Tick(
            number=number,
            due_s=due_s,
            began_s=began_s,
            ended_s=self.clock.now(),
            action=action,
            held=wanted is None,
            age_s=age_s,
            scene_age_s=scene_age_s,
            left=chunks.left(number + 1),
            interventions=interventions,
            seen=seen,
            chunk=chunk,
            asked_s=nan if chunk is None else self._asked_s,
        )

    def _think(self, tick: int) -> Thought:
        """Ask for a chunk if it is time to, and take one if it is there."""
        seen, chunks, now = None, self._chunks, self.clock.now()
        due = chunks.age(tick) >= self.cfg.execute or not chunks.left(tick)
        if due and not self.thinker.busy and self.guard.may_ask(now):
            seen = self.ask(tick)
        try:
            if seen is not None:
                self.thinker.start(seen)
            chunk = self.thinker.poll() if self.thinker.busy else None
            if chunk is not None:
                return seen, self.take(tick, chunk)
            if now - self._asked_s > self.cfg.answer_s and self.thinker.busy and not self._silent:
                self._silent = True
                raise ConnectionLost(f"the policy has not answered for {self.cfg.answer_s:g} s: is it stuck?")
        except TailorbirdError as error:
            if self.cfg.errors == "raise":
                raise
            self.guard.failed(error, now)
            self.trace.failures.append(str(error))
        return seen, None
