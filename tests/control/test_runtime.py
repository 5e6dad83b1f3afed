"""The fixed-rate loop: an exact schedule with a simulated clock, and real threads where it needs them."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from tailorbird.control.runtime import (
    Action,
    Background,
    Clock,
    LoopConfig,
    RealClock,
    SimClock,
    Synchronous,
    drive,
)
from tailorbird.errors import ConfigError
from tailorbird.wire import ActionChunk, Observation

HELD = -1.0


@dataclass
class Arm:
    """Counts its observations, notes every action and when it came."""

    clock: Clock
    after: Callable[["Arm"], bool | None] = lambda arm: None  # runs in each tick; True ends the episode
    observed: int = 0
    done: list[tuple[float, float]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    lasts: list[tuple[float, ...]] = field(default_factory=list)

    def observe(self) -> Observation:
        self.observed += 1
        return Observation(
            images={}, state=np.array([self.observed - 1], np.float32), task="", time_s=self.clock.now()
        )

    def act(self, action: Action) -> bool:
        self.done.append((float(action[0]), float(action[1])))
        self.times.append(self.clock.now())
        return bool(self.after(self))

    def hold(self, last: Action) -> Action:
        self.lasts.append(tuple(last.tolist()))
        return np.array([HELD, last[1]], np.float32)


def plan(length: int) -> Callable[[Observation], ActionChunk]:
    """Actions (number of the observation, place in the chunk)."""

    def think(seen: Observation) -> ActionChunk:
        number = np.full(length, seen.state[0])
        actions = np.stack([number, np.arange(length)], axis=1).astype(np.float32)
        return ActionChunk(actions=actions, time_s=seen.time_s, infer_ms={"read": 1.0, "think": 2.0})

    return think


def config(**fields: float) -> LoopConfig:
    return LoopConfig(**{"hz": 10.0, "execute": 2, "max_ticks": 6} | fields)  # type: ignore[arg-type]


def test_a_waiting_robot_executes_the_first_actions_of_each_chunk() -> None:
    clock = SimClock()
    arm = Arm(clock)
    trace = drive(arm, Synchronous(plan(5), clock), clock, config())
    assert arm.done == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert arm.times == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert trace.ages == [0, 1, 0, 1, 0, 1]
    assert trace.chunk_ms == [3.0, 3.0, 3.0]
    assert (trace.solved, trace.held, trace.late) == (False, 0, 0)
    assert trace.seconds == pytest.approx(0.6)
    assert [tuple(action.tolist()) for action in trace.actions] == arm.done


def test_a_chunk_shorter_than_execute_is_replaced_when_it_ends() -> None:
    clock = SimClock()
    arm = Arm(clock)
    drive(arm, Synchronous(plan(2), clock), clock, config(execute=9, max_ticks=5))
    assert arm.done == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]


def test_a_delayed_chunk_replaces_the_old_one_when_it_is_ready_and_skips_its_past() -> None:
    clock = SimClock()
    arm = Arm(clock)
    trace = drive(arm, Synchronous(plan(9), clock, delay_s=0.15), clock, config(max_ticks=9))
    # asked for at ticks 2 and 5: each comes two ticks later, when its first two actions are past
    assert arm.done == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (1, 4), (2, 2), (2, 3)]
    assert trace.ages == [0, 1, 2, 3, 2, 3, 4, 2, 3]
    assert arm.times[0] == pytest.approx(0.15)  # the first chunk is waited for
    assert trace.held == 0


def test_a_robot_whose_chunk_runs_out_holds_until_the_next_one_comes() -> None:
    clock = SimClock()
    arm = Arm(clock)
    trace = drive(arm, Synchronous(plan(5), clock, delay_s=0.35), clock, config(execute=3, max_ticks=9))
    # asked for at tick 3, ready at tick 7 with four of its five actions past
    assert arm.done == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (HELD, 4), (HELD, 4), (1, 4), (HELD, 4)]
    assert trace.held == 3
    assert arm.lasts == [(0, 4), (HELD, 4), (1, 4)]


def test_a_solved_task_ends_the_episode_at_the_end_of_its_tick() -> None:
    clock = SimClock()
    arm = Arm(clock, after=lambda arm: len(arm.done) == 3)
    trace = drive(arm, Synchronous(plan(5), clock), clock, config())
    assert trace.solved
    assert len(trace.actions) == 3
    assert trace.seconds == pytest.approx(0.3)


def test_a_second_episode_does_not_see_the_chunk_that_the_first_left_behind() -> None:
    clock = SimClock()
    thinker = Synchronous(plan(9), clock, delay_s=0.15)
    drive(Arm(clock), thinker, clock, config(max_ticks=3))
    assert thinker.busy  # asked for at tick 2 and never taken
    arm = Arm(clock)
    arm.observed = 50
    drive(arm, thinker, clock, config(max_ticks=3))
    assert arm.done == [(50, 0), (50, 1), (50, 2)]


def spend(clock: SimClock, seconds: dict[int, float]) -> Callable[[Arm], None]:
    """Makes the given ticks take so long."""
    return lambda arm: clock.sleep_until(clock.now() + seconds.get(len(arm.done) - 1, 0.0))


def test_work_shorter_than_a_period_never_delays_a_tick() -> None:
    clock = SimClock()
    arm = Arm(clock, after=spend(clock, dict.fromkeys(range(50), 0.09)))
    trace = drive(arm, Synchronous(plan(5), clock), clock, config(max_ticks=50))
    assert arm.times == pytest.approx([n / 10 for n in range(50)])
    assert trace.late == 0


def test_a_tick_that_takes_too_long_makes_one_other_late_and_no_more() -> None:
    clock = SimClock()
    arm = Arm(clock, after=spend(clock, {1: 0.13}))
    trace = drive(arm, Synchronous(plan(5), clock), clock, config())
    assert arm.times == pytest.approx([0.0, 0.1, 0.23, 0.3, 0.4, 0.5])
    assert trace.late == 1


def test_lost_periods_are_not_made_up_for_by_a_burst() -> None:
    clock = SimClock()
    arm = Arm(clock, after=spend(clock, {1: 0.37}))
    trace = drive(arm, Synchronous(plan(5), clock), clock, config())
    assert arm.times == pytest.approx([0.0, 0.1, 0.47, 0.57, 0.67, 0.77])
    assert trace.late == 1
    assert trace.seconds == pytest.approx(0.87)


def test_a_real_clock_keeps_the_rate_although_every_tick_takes_time() -> None:
    clock = RealClock()
    arm = Arm(clock, after=lambda arm: time.sleep(0.004))
    began = time.perf_counter()
    trace = drive(arm, Synchronous(plan(5), clock), clock, config(hz=100.0, max_ticks=30))
    assert 0.3 <= trace.seconds <= time.perf_counter() - began
    assert trace.seconds < 1.5  # 0.3 on an idle machine
    assert np.diff(arm.times).min() > 0


def test_a_real_clock_does_not_sleep_for_what_is_past() -> None:
    clock = RealClock()
    now = clock.now()
    clock.sleep_until(now - 100)
    assert clock.now() - now < 10


class Gate:
    """A policy that answers at once, then waits for permission."""

    def __init__(self, length: int) -> None:
        self.plan, self.opened, self.calls = plan(length), threading.Event(), 0

    def __call__(self, seen: Observation) -> ActionChunk:
        self.calls += 1
        assert self.calls == 1 or self.opened.wait(30)
        return self.plan(seen)


def test_the_robot_goes_on_while_the_policy_thinks_and_the_late_chunk_loses_its_past() -> None:
    clock, gate = SimClock(), Gate(5000)

    def after(arm: Arm) -> bool:
        if len(arm.done) == 7:
            gate.opened.set()
        if len(arm.done) >= 7:
            time.sleep(0.001)
        return arm.done[-1][0] == 1  # the second chunk has come

    thinker = Background(gate)
    try:
        arm = Arm(clock, after=after)
        trace = drive(arm, thinker, clock, config(max_ticks=5000))
    finally:
        thinker.close()
    assert trace.solved
    ticks = len(arm.done)
    assert ticks > 7
    assert arm.done[:-1] == [(0, tick) for tick in range(ticks - 1)]
    assert arm.done[-1] == (1, ticks - 1 - 2)  # its observation was taken at tick 2
    assert trace.ages[-1] == ticks - 1 - 2
    assert (trace.held, gate.calls, arm.observed) == (0, 2, 2)


def test_the_robot_holds_while_the_policy_thinks_for_too_long() -> None:
    clock, gate = SimClock(), Gate(3)

    def after(arm: Arm) -> bool:
        if len(arm.lasts) == 4:
            gate.opened.set()
        if len(arm.lasts) >= 4:
            time.sleep(0.001)
        return gate.calls > 2  # it was asked again, so the second chunk came

    thinker = Background(gate)
    try:
        arm = Arm(clock, after=after)
        trace = drive(arm, thinker, clock, config(execute=1, max_ticks=5000))
    finally:
        thinker.close()
    assert trace.solved
    assert arm.done[:7] == [(0, 0), (0, 1), (0, 2), (HELD, 2), (HELD, 2), (HELD, 2), (HELD, 2)]
    assert trace.held >= 4
    assert len(trace.chunk_ms) >= 2


@pytest.mark.parametrize("at", [1, 2])
def test_an_error_in_the_thread_reaches_the_caller(at: int) -> None:
    clock, calls, good = SimClock(), 0, plan(5000)

    def think(seen: Observation) -> ActionChunk:
        nonlocal calls
        calls += 1
        if calls == at:
            raise ValueError("the weights are gone")
        return good(seen)

    thinker = Background(think)
    try:
        with pytest.raises(ValueError, match="the weights are gone"):
            drive(Arm(clock, after=lambda arm: time.sleep(0.001)), thinker, clock, config(max_ticks=5000))
    finally:
        thinker.close()


def test_closing_ends_the_thread_once_its_thought_is_finished() -> None:
    before, gate = threading.active_count(), Gate(2)
    thinker = Background(gate)
    assert not thinker.busy
    thinker.start(Arm(SimClock()).observe())
    assert thinker.busy
    assert thinker.wait().actions.shape == (2, 2)
    thinker.start(Arm(SimClock()).observe())
    assert thinker.poll() is None
    assert threading.active_count() == before + 1
    gate.opened.set()
    thinker.close()
    assert threading.active_count() == before


@pytest.mark.parametrize(
    "fields", [{"hz": 0.0}, {"hz": -5.0}, {"hz": float("nan")}, {"execute": 0}, {"max_ticks": 0}]
)
def test_a_loop_that_cannot_run_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        config(**fields)


def test_a_robot_needs_no_torch() -> None:
    code = "import sys, tailorbird.control.runtime, tailorbird.wire; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
