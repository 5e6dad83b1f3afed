"""A run of the real loop whose figures are known, in simulated time."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from tailorbird.control.clock import SimClock
from tailorbird.control.config import LoopConfig
from tailorbird.control.runtime import Trace, drive
from tailorbird.control.safety import Action, Guard, Limits
from tailorbird.control.thinkers import Synchronous
from tailorbird.live.feed import Moment, Timed
from tailorbird.wire import ActionChunk, Observation

HZ, TICKS, LENGTH, DELAY_S = 20.0, 30, 7, 0.12  # a chunk arrives in the third tick after its question
LATE_TICK = 11  # the tick before it takes 70 ms instead of 3
PUSH = 9.0  # beyond the bounds of 5
STAGES = {"prepare": 20.0, "encode": 60.0, "denoise": 30.0}
LIMITS = Limits(names=("x", "y", "grip"), mode="delta", low=(-5, -5, -5), high=(5, 5, 5), keep=("grip",))


@dataclass
class Arm:
    """Takes 2 ms to observe and 3 ms to act, once 70 ms."""

    clock: SimClock
    limits: Limits = LIMITS
    acts: int = 0
    observed: list[Observation] = field(default_factory=list)

    def observe(self) -> Observation:
        now_s = self.clock.now()
        self.clock.sleep_until(now_s + 0.002)
        images = {"top": np.full((16, 24, 3), self.acts, np.uint8), "wrist": np.zeros((8, 10, 3), np.uint8)}
        seen = Observation(images=images, state=np.full(5, self.acts, np.float32), task="go", time_s=now_s)
        self.observed.append(seen)
        return seen

    def act(self, action: Action) -> bool:
        self.clock.sleep_until(self.clock.now() + (0.07 if self.acts == LATE_TICK - 1 else 0.003))
        self.acts += 1
        return False


def think(seen: Observation) -> ActionChunk:
    """Its fifth action goes too far."""
    actions = np.tile(seen.state[:3], (LENGTH, 1)) / 100
    actions[4, 0] = PUSH
    return ActionChunk(actions=actions, time_s=seen.time_s, scene_time_s=seen.time_s - 0.1, infer_ms=STAGES)


def played(watch: Callable[[Moment], None], episodes: int = 1) -> tuple[list[Trace], list[Moment], Arm]:
    """What each episode left, every tick, and the robot. `watch` sees the ticks while they happen."""
    clock, moments = SimClock(), list[Moment]()
    robot = Arm(clock)
    timed = Timed(robot, clock)

    def note(episode: int, tick: object) -> None:
        moments.append(Moment(episode=episode, tick=tick, spans=timed.take_spans()))  # type: ignore[arg-type]
        watch(moments[-1])

    cfg, traces = LoopConfig(hz=HZ, execute=2, max_ticks=TICKS), []
    for episode in range(episodes):
        robot.acts, guard = 0, Guard(robot.limits, HZ)
        timed.take_spans()
        thinker = Synchronous(think, clock, DELAY_S)
        traces.append(drive(timed, thinker, clock, cfg, guard=guard, watch=partial(note, episode)))
    return traces, moments, robot
