"""The fixed-rate loop: an exact schedule with a simulated clock, and real threads where it needs them."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from tailorbird.control.clock import Clock, RealClock, SimClock
from tailorbird.control.config import LoopConfig
from tailorbird.control.runtime import Tick, drive
from tailorbird.control.safety import Action, Guard, Limits
from tailorbird.control.thinkers import Background, Synchronous
from tailorbird.errors import ConfigError, ConnectionLost, DataError, RobotError
from tailorbird.wire import ActionChunk, Observation

HELD = 0.0
FAR = (float("inf"),) * 2
LIMITS = Limits(names=("way", "grip"), mode="delta", low=(-FAR[0],) * 2, high=FAR, keep=("grip",))


@dataclass
class Arm:
    """Counts its observations, notes every action and when it came."""

    clock: Clock
    after: Callable[["Arm"], bool | None] = lambda arm: None  # runs in each tick; True ends the episode
    observed: int = 0
    done: list[tuple[float, float]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    limits: Limits = LIMITS

    def observe(self) -> Observation:
        self.observed += 1
        return Observation(
            images={}, state=np.array([self.observed], np.float32), task="", time_s=self.clock.now()
        )

    def act(self, action: Action) -> bool:
        self.done.append((float(action[0]), float(action[1])))
        self.times.append(self.clock.now())
        return bool(self.after(self))


def plan(length: int) -> Callable[[Observation], ActionChunk]:
    """Actions (number of the observation, place in the chunk)."""

    def think(seen: Observation) -> ActionChunk:
        number = np.full(length, seen.state[0])
        actions = np.stack([number, np.arange(length)], axis=1).astype(np.float32)
        return ActionChunk(actions=actions, time_s=seen.time_s, infer_ms={"read": 1.0, "think": 2.0})

    return think


def config(**fields: Any) -> LoopConfig:
    return LoopConfig(**{"hz": 10.0, "execute": 2, "max_ticks": 6, "halt": False} | fields)  # type: ignore[arg-type]


def test_a_waiting_robot_executes_the_first_actions_of_each_chunk() -> None:
    clock = SimClock()
    arm = Arm(clock)
    trace = drive(arm, Synchronous(plan(5), clock), clock, config())
    assert arm.done == [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)]
    assert arm.times == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert trace.age_s == pytest.approx([0, 0.1, 0, 0.1, 0, 0.1])
    assert trace.chunk_ms == [3.0, 3.0, 3.0]
    assert (trace.solved, trace.held, trace.late) == (False, 0, 0)
    assert trace.seconds == pytest.approx(0.6)
    assert [tuple(action.tolist()) for action in trace.actions] == arm.done


def test_a_chunk_shorter_than_execute_is_replaced_when_it_ends() -> None:
    clock = SimClock()
    arm = Arm(clock)
    drive(arm, Synchronous(plan(2), clock), clock, config(execute=9, max_ticks=5))
    assert arm.done == [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0)]


def test_a_delayed_chunk_replaces_the_old_one_when_it_is_ready_and_skips_its_past() -> None:
    clock = SimClock()
    arm = Arm(clock)
    trace = drive(arm, Synchronous(plan(9), clock, delay_s=0.15), clock, config(max_ticks=9))
    # asked for at ticks 2 and 5: each comes two ticks later, when its first two actions are past
    assert arm.done == [(1, 0), (1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (2, 4), (3, 2), (3, 3)]
    assert trace.age_s == pytest.approx([0.15, 0.25, 0.35, 0.45, 0.2, 0.3, 0.4, 0.2, 0.3])
    assert arm.times[0] == pytest.approx(0.15)  # the first chunk is waited for
    assert trace.held == 0


def test_a_robot_whose_chunk_runs_out_holds_until_the_next_one_comes() -> None:
    clock = SimClock()
    arm = Arm(clock)
    trace = drive(arm, Synchronous(plan(5), clock, delay_s=0.35), clock, config(execute=3, max_ticks=9))
    # asked for at tick 3, ready at tick 7 with four of its five actions past
    assert arm.done == [(1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (HELD, 4), (HELD, 4), (2, 4), (HELD, 4)]
    assert trace.held == 3


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
    assert arm.done == [(51, 0), (51, 1), (51, 2)]


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


def test_lost_periods_are_not_made_up_for_by_a_burst_and_the_next_ticks_keep_to_the_grid() -> None:
    clock = SimClock()
    arm = Arm(clock, after=spend(clock, {1: 0.37}))
    trace = drive(arm, Synchronous(plan(5), clock), clock, config())
    assert arm.times == pytest.approx([0.0, 0.1, 0.47, 0.5, 0.6, 0.7])
    assert trace.late == 1
    assert trace.seconds == pytest.approx(0.8)


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
        return arm.done[-1][0] == 2  # the second chunk has come

    thinker = Background(gate)
    try:
        arm = Arm(clock, after=after)
        trace = drive(arm, thinker, clock, config(max_ticks=5000))
    finally:
        thinker.close()
    assert trace.solved
    ticks = len(arm.done)
    assert ticks > 7
    assert arm.done[:-1] == [(1, tick) for tick in range(ticks - 1)]
    assert arm.done[-1] == (2, ticks - 1 - 2)  # its observation was taken at tick 2
    assert trace.age_s[-1] == pytest.approx((ticks - 1 - 2) / 10)
    assert (trace.held, gate.calls, arm.observed) == (0, 2, 2)


def test_the_robot_holds_while_the_policy_thinks_for_too_long() -> None:
    clock, gate = SimClock(), Gate(3)

    def after(arm: Arm) -> bool:
        if len(arm.done) == 7:
            gate.opened.set()
        if len(arm.done) >= 7:
            time.sleep(0.001)
        return gate.calls > 2  # it was asked again, so the second chunk came

    thinker = Background(gate)
    try:
        arm = Arm(clock, after=after)
        trace = drive(arm, thinker, clock, config(execute=1, max_ticks=5000))
    finally:
        thinker.close()
    assert trace.solved
    assert arm.done[:7] == [(1, 0), (1, 1), (1, 2), (HELD, 2), (HELD, 2), (HELD, 2), (HELD, 2)]
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


def test_a_waiting_robot_holds_and_then_executes_a_late_chunk_from_its_start() -> None:
    clock = SimClock()
    arm = Arm(clock)
    trace = drive(arm, Synchronous(plan(9), clock, delay_s=0.25), clock, config(mode="sync", max_ticks=9))
    # asked for at ticks 2 and 7, there three ticks later
    assert arm.done == [(1, 0), (1, 1), (HELD, 1), (HELD, 1), (HELD, 1), (2, 0), (2, 1), (HELD, 1), (HELD, 1)]
    assert trace.held == 5
    assert trace.switches == [0, 5]
    assert trace.age_s[5] == pytest.approx(0.3)
    assert np.isnan(trace.age_s[2])


def test_a_policy_is_told_what_will_be_executed_before_its_answer_is_there() -> None:
    clock, told = SimClock(), []

    def think(seen: Observation) -> ActionChunk:
        told.append(seen.committed)
        return plan(9)(seen)

    drive(Arm(clock), Synchronous(think, clock, delay_s=0.15), clock, config(mode="rtc", max_ticks=8))
    assert told[0] is None
    assert [one.frozen for one in told[1:]] == [2, 2]  # the longest delay that was seen so far, in ticks
    assert told[1].actions.tolist() == [[1, place] for place in range(2, 9)]
    assert told[2].actions.tolist() == [[2, place] for place in range(3, 9)]


def test_only_real_time_chunking_tells_the_policy_what_is_committed() -> None:
    clock, told = SimClock(), []

    def think(seen: Observation) -> ActionChunk:
        told.append(seen.committed)
        return plan(9)(seen)

    drive(Arm(clock), Synchronous(think, clock), clock, config())
    assert told == [None] * 3


def test_the_age_of_pictures_is_told_apart_from_that_of_the_state() -> None:
    clock = SimClock()

    def think(seen: Observation) -> ActionChunk:
        return replace(plan(9)(seen), scene_time_s=seen.time_s - 0.5)

    trace = drive(Arm(clock), Synchronous(think, clock), clock, config(max_ticks=3))
    assert trace.age_s == pytest.approx([0, 0.1, 0])
    assert trace.scene_age_s == pytest.approx([0.5, 0.6, 0.5])


def test_every_tick_is_shown_as_it_was() -> None:
    clock, ticks = SimClock(), list[Tick]()
    arm = Arm(clock, after=spend(clock, dict.fromkeys(range(9), 0.03)))
    drive(arm, Synchronous(plan(9), clock, delay_s=0.15), clock, config(), watch=ticks.append)
    assert [tick.number for tick in ticks] == list(range(6))
    assert [(float(tick.action[0]), float(tick.action[1])) for tick in ticks] == arm.done
    assert [tick.ended_s - tick.began_s for tick in ticks] == pytest.approx([0.03] * 6)
    assert [tick.began_s - tick.due_s for tick in ticks] == pytest.approx([0] * 6)
    assert [tick.number for tick in ticks if tick.seen is not None] == [0, 2, 5]
    assert [tick.number for tick in ticks if tick.chunk is not None] == [0, 4]
    assert ticks[0].asked_s == pytest.approx(ticks[0].began_s - 0.15)
    assert ticks[4].asked_s == pytest.approx(ticks[2].began_s)
    assert [tick.left for tick in ticks] == [8, 7, 6, 5, 6, 5]


def test_limits_hold_without_anybody_asking_for_them() -> None:
    clock = SimClock()
    arm = Arm(clock, limits=replace(LIMITS, low=(-1, -9), high=(1, 2)))
    trace = drive(arm, Synchronous(plan(9), clock), clock, config(execute=5, max_ticks=5))
    assert arm.done == [(1, 0), (1, 1), (1, 2), (1, 2), (1, 2)]
    assert trace.interventions == {"position": 2}


@pytest.mark.parametrize("error", [DataError, ConnectionLost])
def test_a_policy_that_fails_is_counted_and_asked_again_while_the_robot_holds(
    error: type[Exception],
) -> None:
    clock, calls = SimClock(), 0

    def think(seen: Observation) -> ActionChunk:
        nonlocal calls
        calls += 1
        if calls in (2, 3):
            raise error("the camera is gone")
        return plan(3)(seen)

    arm = Arm(clock)
    trace = drive(arm, Synchronous(think, clock), clock, config(execute=3))
    assert arm.done == [(1, 0), (1, 1), (1, 2), (HELD, 2), (HELD, 2), (4, 0)]
    assert trace.failures == ["the camera is gone"] * 2
    assert trace.interventions == {"no action": 2}


def test_a_policy_that_keeps_failing_is_left_alone_for_a_while() -> None:
    clock, asked = SimClock(), []

    def think(seen: Observation) -> ActionChunk:
        asked.append(clock.now())
        if len(asked) > 1:
            raise DataError("the camera is gone")
        return plan(1)(seen)

    arm = Arm(clock)
    guard = Guard(LIMITS, 10, failures=3, cool_down_s=1.0)
    drive(arm, Synchronous(think, clock), clock, config(max_ticks=26), guard=guard)
    assert asked == pytest.approx([0, 0.1, 0.2, 0.3, 1.3, 2.3])
    assert guard.counts["policy failed"] == 5


def test_where_errors_are_not_to_be_held_through_the_first_ends_the_episode() -> None:
    clock, calls = SimClock(), 0

    def think(seen: Observation) -> ActionChunk:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise DataError("the camera is gone")
        return plan(3)(seen)

    with pytest.raises(DataError, match="camera is gone"):
        drive(Arm(clock), Synchronous(think, clock), clock, config(errors="raise"))


def test_an_action_is_as_old_as_what_it_answers_and_not_as_the_question() -> None:
    """As when a client goes on with its last chunk while the server is away."""
    clock, old = SimClock(), plan(9)(Observation(images={}, state=np.ones(1, np.float32), task=""))
    guard = Guard(LIMITS, 10, max_age_s=0.55)
    trace = drive(Arm(clock), Synchronous(lambda seen: old, clock), clock, config(max_ticks=9), guard=guard)
    assert trace.age_s == pytest.approx([number / 10 for number in range(9)])
    assert trace.interventions == {"stale": 3}


def test_ages_count_from_before_the_observation_was_taken() -> None:
    clock = SimClock()

    class Slow(Arm):
        def observe(self) -> Observation:
            seen = super().observe()
            clock.sleep_until(clock.now() + 0.08)
            return seen

    trace = drive(Slow(clock), Synchronous(plan(9), clock), clock, config(max_ticks=4))
    assert min(trace.age_s) >= 0
    assert trace.age_s[0] == pytest.approx(0.08)


def test_pictures_that_are_too_old_are_not_acted_upon_however_fresh_the_state() -> None:
    clock = SimClock()

    def think(seen: Observation) -> ActionChunk:
        return replace(plan(9)(seen), scene_time_s=0.0)  # the camera froze

    guard = Guard(LIMITS, 10, max_scene_age_s=0.35)
    trace = drive(Arm(clock), Synchronous(think, clock), clock, config(), guard=guard)
    assert trace.interventions == {"stale pictures": 2}
    assert max(trace.age_s) == pytest.approx(0.1)


def test_a_policy_that_falls_silent_counts_as_failed_once_a_question() -> None:
    clock, gate = SimClock(), Gate(9)
    thinker = Background(gate)
    guard = Guard(LIMITS, 10)
    try:
        trace = drive(Arm(clock), thinker, clock, config(answer_s=0.25, max_ticks=20), guard=guard)
    finally:
        gate.opened.set()
        thinker.close()
    assert [("not answered for 0.25 s" in one) for one in trace.failures] == [True]
    assert guard.counts["policy failed"] == 1
    assert trace.held == 11


def test_a_first_chunk_that_does_not_come_is_not_waited_for_without_end() -> None:
    clock, opened = SimClock(), threading.Event()

    def think(seen: Observation) -> ActionChunk:
        assert opened.wait(30)
        return plan(3)(seen)

    thinker = Background(think)
    try:
        with pytest.raises(ConnectionLost, match=r"not answered for 0\.05 s"):
            drive(Arm(clock), thinker, clock, config(answer_s=0.05))
    finally:
        opened.set()
        thinker.close()


@pytest.mark.parametrize("ends", ["in time", "by an error"])
def test_a_robot_is_left_with_a_command_that_it_may_go_on_with(ends: str) -> None:
    clock = SimClock()

    def after(arm: Arm) -> bool:
        if ends == "by an error" and len(arm.done) == 4:
            raise RobotError("the bus is gone")
        return False

    arm = Arm(clock, after=after)
    with pytest.raises(RobotError) if ends == "by an error" else nullcontext():
        drive(arm, Synchronous(plan(9), clock), clock, config(halt=True, max_ticks=4))
    assert arm.done == [(1, 0), (1, 1), (2, 0), (2, 1), (HELD, 1)]


def test_what_fails_in_the_robot_is_not_booked_as_the_policys() -> None:
    clock = SimClock()

    class Blind(Arm):
        def observe(self) -> Observation:
            if self.observed == 2:
                raise RobotError("the camera is unplugged")
            return super().observe()

    with pytest.raises(RobotError, match="unplugged"):
        drive(Blind(clock), Synchronous(plan(9), clock), clock, config())


@pytest.mark.parametrize("shape", [(9, 3), (9,), (2, 9, 2)])
def test_a_chunk_of_another_robot_is_a_failure_of_the_policy(shape: tuple[int, ...]) -> None:
    clock, good = SimClock(), plan(3)

    def think(seen: Observation) -> ActionChunk:
        return replace(good(seen), actions=np.zeros(shape, np.float32)) if seen.state[0] > 1 else good(seen)

    trace = drive(Arm(clock), Synchronous(think, clock), clock, config(ensemble=True, max_ticks=3))
    assert len(trace.failures) == 1
    assert "the robot takes (L, 2)" in trace.failures[0]


def test_periods_that_never_were_are_counted() -> None:
    clock = SimClock()
    arm = Arm(clock, after=spend(clock, {1: 0.37}))
    trace = drive(arm, Synchronous(plan(5), clock), clock, config())
    assert (trace.late, trace.lost) == (1, 2)


@pytest.mark.parametrize(
    "fields", [{"hz": 0.0}, {"hz": -5.0}, {"hz": float("nan")}, {"execute": 0}, {"max_ticks": 0}]
)
def test_a_loop_that_cannot_run_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        config(**fields)


def test_a_robot_needs_no_torch() -> None:
    code = "import sys, tailorbird.control.runtime, tailorbird.wire; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_record_of_a_robot_that_runs_for_days_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailorbird.control.runtime.KEPT", 10)
    clock = SimClock()
    trace = drive(Arm(clock), Synchronous(plan(5), clock), clock, config(max_ticks=40))
    kept = [len(trace.actions), len(trace.age_s), len(trace.switches), len(trace.chunk_ms)]
    assert trace.ticks == 40
    assert all(5 <= num <= 10 for num in kept)
