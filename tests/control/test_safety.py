"""What a guard lets through: whatever comes in, what goes out is within the robot's limits."""

import json
import signal
import threading
from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
from numpy.typing import NDArray

from tailorbird.control.safety import Action, Guard, Limits
from tailorbird.errors import ConfigError, DataError

HZ = 20.0
ARM = Limits(
    names=("pan", "lift", "jaw"),
    mode="absolute",
    low=(-1.1, -2.0, 0.0),
    high=(1.1, 2.0, 0.7),
    max_velocity=(2.0, 3.0, 1.0),
    max_acceleration=(8.0, 60.0, 5.0),
)
HAND = Limits(
    names=("x", "y", "grip"),
    mode="delta",
    low=(-0.1, -0.3, -1.0),
    high=(0.2, 0.3, 1.0),
    max_velocity=(3.0, 5.0, 8.0),
    max_acceleration=(20.0, 10.0, 90.0),
    keep=("grip",),
)
WHEELS = replace(HAND, mode="velocity", keep=())


def act(*values: float) -> Action:
    return np.array(values, np.float32)


def run(guard: Guard, wanted: list[Action | None], age_s: float = 0.0) -> NDArray[np.float64]:
    """(T, A) of what was executed."""
    return np.stack([guard(action, age_s)[0] for action in wanted]).astype(np.float64)


def one(**fields: object) -> Limits:
    """A single position between -1 and 1."""
    return Limits(**{"names": ("a",), "mode": "absolute", "low": (-1.0,), "high": (1.0,)} | fields)  # type: ignore[arg-type]


# What goes out is within the limits


def nasty(rng: np.random.Generator, ticks: int) -> list[Action | None]:
    """Jumps of every size, holes, and what is not a number."""
    walk = np.cumsum(rng.normal(0, 10 ** rng.uniform(-3, 0), (ticks, 3)), axis=0) * rng.choice([0, 1])
    walk = walk + rng.normal(0, 10 ** rng.uniform(-4, 2), (ticks, 3))
    actions: list[Action | None] = list(walk.astype(np.float32))
    for tick in rng.choice(ticks, ticks // 5, replace=False):
        odd = [
            None,
            act(nan, 0, 0),
            act(inf, 0, 0),
            act(0, -inf, 1),
            act(1e30, -1e30, 3e38),
            act(0, 0),
            act(),
        ]
        actions[tick] = odd[rng.integers(len(odd))]
    return actions


def motion(limits: Limits, executed: NDArray[np.float64], start: Action) -> list[NDArray[np.float64]]:
    """Speeds and accelerations of what the actions command, by the definitions in `Limits`."""
    kept = np.array(limits.are_positions)
    still = np.where(kept, np.asarray(start, np.float64), 0.0)
    padded = np.vstack([still, still, executed])
    per_s = HZ if limits.mode == "delta" else 1.0
    speed = np.where(kept, np.diff(padded, axis=0) * HZ, padded[1:] * per_s)
    return [speed, np.diff(speed, axis=0) * HZ]


@pytest.mark.parametrize("limits", [ARM, HAND, WHEELS], ids=lambda limits: limits.mode)
@pytest.mark.parametrize("only", ["all", "velocity", "acceleration", "position"])
def test_whatever_comes_in_what_goes_out_is_finite_and_within_the_limits(limits: Limits, only: str) -> None:
    if only not in ("all", "velocity"):
        limits = replace(limits, max_velocity=None)
    if only not in ("all", "acceleration"):
        limits = replace(limits, max_acceleration=None)
    for seed in range(15):
        rng = np.random.default_rng(seed)
        guard = Guard(limits, HZ, max_age_s=1.0)
        start = np.clip(rng.normal(0, 1, 3), limits.low, limits.high).astype(np.float32) * np.float32(0.99)
        guard.begin(start)
        executed = np.stack([guard(w, rng.choice([0.0, 0.9, 1.1, nan], p=[0.5, 0.3, 0.1, 0.1]))[0]
                             for w in nasty(rng, 120)])  # fmt: skip
        assert executed.dtype == np.float32
        assert np.isfinite(executed).all()
        assert (executed >= limits.low).all()
        assert (executed <= limits.high).all()
        bounds = [limits.max_velocity or (inf,) * 3, limits.max_acceleration or (inf,) * 3]
        for values, bound, ulp in zip(motion(limits, executed, start), bounds, (HZ, HZ**2), strict=True):
            assert (np.abs(values) <= np.array(bound) * (1 + 1e-6) + 2e-6 * ulp).all(), seed


def test_without_bounds_everything_finite_passes_unchanged() -> None:
    guard = Guard(Limits.free(3), HZ)
    for wanted in (act(1, -2, 3), act(1e30, -3e38, 1e-30), act(0, 5, 1e-7)):
        action, done = guard(wanted, 0.0)
        np.testing.assert_array_equal(action, wanted)
        assert done == ()
    assert guard(act(0, nan, 0), 0.0)[1] == ("not finite",)


@pytest.mark.parametrize("limits", [ARM, HAND, WHEELS], ids=lambda limits: limits.mode)
def test_what_keeps_within_the_limits_passes_unchanged(limits: Limits) -> None:
    phase = np.linspace(0, 4 * np.pi, 200)
    wanted = list(
        (0.09 * np.stack([np.sin(phase), np.sin(phase / 2), 1 - np.cos(phase)], 1)).astype(np.float32)
    )
    guard = Guard(limits, HZ)
    guard.begin(wanted[0])
    for action in wanted:
        np.testing.assert_array_equal(guard(action, 0.0)[0], action)
    assert not guard.counts


# A jump


def test_a_jump_becomes_a_ramp_at_the_largest_velocity() -> None:
    guard = Guard(one(max_velocity=(5.0,)), 10.0)
    guard.begin(act(0))
    assert run(guard, [act(0.9)] * 4)[:, 0] == pytest.approx([0.5, 0.9, 0.9, 0.9])
    assert dict(guard.counts) == {"velocity": 1}


def test_a_jump_is_accelerated_into_and_braked_out_of() -> None:
    guard = Guard(one(max_velocity=(3.0,), max_acceleration=(10.0,)), 10.0)  # 0.3 and 0.1 a tick
    guard.begin(act(-1))
    executed = run(guard, [act(0.8)] * 13)[:, 0]
    assert executed == pytest.approx([-0.9, -0.7, -0.4, -0.1, 0.2, 0.5, 0.7, 0.8, *[0.8] * 5])
    assert guard(act(0.8), 0.0)[1] == ()


@pytest.mark.parametrize("acceleration", [0.7, 3.0, 11.0, 500.0])
@pytest.mark.parametrize("target", [0.003, 0.31, 1.0, 1e30])
def test_a_target_is_reached_without_overshoot_and_kept(acceleration: float, target: float) -> None:
    guard = Guard(one(max_velocity=(2.0,), max_acceleration=(acceleration,)), HZ)
    guard.begin(act(-0.9))
    executed = run(guard, [act(target)] * 100)[:, 0]
    assert (np.diff(executed) >= 0).all()
    assert executed[-1] == np.float32(min(target, 1.0))


def test_a_robot_that_was_outside_its_bounds_comes_back_slowly_and_never_goes_further() -> None:
    guard = Guard(one(max_velocity=(2.0,)), 10.0)
    guard.begin(act(1.5))
    assert run(guard, [None, act(3), act(3), act(3), act(3)])[:, 0] == pytest.approx(
        [1.5, 1.3, 1.1, 1.0, 1.0]
    )


def test_each_limit_is_named_when_it_changes_an_action() -> None:
    guard = Guard(one(max_velocity=(2.0,), max_acceleration=(15.0,)), 10.0)
    guard.begin(act(0))
    assert guard(act(0.15), 0.0) == (pytest.approx([0.15]), ())
    assert guard(act(0.0), 0.0) == (pytest.approx([0.15]), ("acceleration",))
    guard.begin(act(0))
    assert guard(act(0.1), 0.0) == (pytest.approx([0.1]), ())
    assert guard(act(9.0), 0.0) == (pytest.approx([0.3]), ("position", "velocity"))


def test_a_bound_that_float32_cannot_hold_is_kept_and_named_once() -> None:
    guard = Guard(one(high=(0.1,)), HZ)
    assert float(np.float32(0.1)) > 0.1
    assert guard(act(0.1), 0.0)[1] == ()
    action, done = guard(act(0.2), 0.0)
    assert 0.0999999 < float(action[0]) < 0.1
    assert done == ("position",)


def test_displacements_are_limited_by_the_speed_that_they_amount_to() -> None:
    limits = one(mode="delta", max_velocity=(4.0,), max_acceleration=(20.0,))  # 0.4 and 0.2 a tick
    guard = Guard(limits, 10.0)
    assert guard(act(0.9), 0.0) == (pytest.approx([0.2]), ("velocity", "acceleration"))
    assert guard(act(0.9), 0.0) == (pytest.approx([0.4]), ("velocity",))
    assert guard(act(2.0), 0.0) == (pytest.approx([0.4]), ("position", "velocity"))
    assert guard(None, 0.0)[0] == pytest.approx([0.2])
    assert guard(None, 0.0)[0] == pytest.approx([0.0])


# Holding


def test_positions_are_held() -> None:
    guard = Guard(Limits.free(2), HZ)
    guard(act(3, 4), 0.0)
    assert guard(None, nan) == (pytest.approx([3, 4]), ("no action",))


def test_displacements_and_velocities_are_held_at_zero_and_a_grip_is_kept() -> None:
    guard = Guard(replace(HAND, max_velocity=None, max_acceleration=None), HZ)
    guard(act(0.1, -0.2, 0.8), 0.0)
    assert guard(act(0.1, -0.2, nan), 0.0)[0] == pytest.approx([0, 0, 0.8])


def test_a_moving_robot_brakes_before_it_holds() -> None:
    guard = Guard(one(max_acceleration=(10.0,)), 10.0)
    guard.begin(act(-1))
    run(guard, [act(v) for v in (-0.9, -0.7, -0.4)])
    assert run(guard, [None] * 4)[:, 0] == pytest.approx([-0.2, -0.1, -0.1, -0.1])
    assert guard(act(-0.1), 0.0)[1] == ()


@pytest.mark.parametrize(
    ("wanted", "age_s", "why"),
    [
        (None, 0.0, "no action"),
        (act(nan, 0, 0), 0.0, "not finite"),
        (np.array([0, 1e39, 0]), 0.0, "not finite"),
        (act(0, 0), 0.0, "wrong shape"),
        (act(0, 0, 0), 2.1, "stale"),
        (act(0, 0, 0), nan, "stale"),
    ],
)
def test_what_cannot_be_executed_is_held_and_counted(wanted: Action | None, age_s: float, why: str) -> None:
    guard = Guard(ARM, HZ, max_age_s=2.0)
    guard.begin(act(1, 2, 0.5))
    for _ in range(3):
        assert guard(wanted, age_s) == (pytest.approx([1, 2, 0.5]), (why,))
    assert guard.counts[why] == 3
    assert guard(act(1, 2, 0.5), 2.0)[1] == ()


def test_there_is_no_holding_of_a_position_that_nobody_knows() -> None:
    with pytest.raises(ConfigError, match=r"no action before the first action.*begin\(\)"):
        Guard(ARM, HZ)(None, 0.0)
    assert Guard(HAND, HZ)(None, 0.0)[0] == pytest.approx([0, 0, 0])


def test_a_new_episode_begins_where_the_robot_stands_and_without_speed() -> None:
    guard = Guard(one(max_velocity=(2.0,), max_acceleration=(10.0,)), 10.0)
    guard.begin(act(-1))
    run(guard, [act(1)] * 4)
    guard.begin(act(0.5))
    assert run(guard, [None, act(1), act(1)])[:, 0] == pytest.approx([0.5, 0.6, 0.8])
    guard.begin()
    assert guard(act(-0.9), 0.0) == (pytest.approx([-0.9]), ())


def test_a_new_episode_of_displacements_begins_without_speed() -> None:
    guard = Guard(replace(HAND, max_velocity=None), HZ)
    run(guard, [act(0.2, 0.3, 0.9)] * 9)
    guard.begin()
    assert guard(None, 0.0)[0] == pytest.approx([0, 0, 0.9])


@pytest.mark.parametrize("position", [act(0, 0), act(0, nan, 0), act(inf, 0, 0)])
def test_a_robot_that_stands_nowhere_cannot_begin(position: Action) -> None:
    with pytest.raises(ConfigError, match="cannot stand at"):
        Guard(ARM, HZ).begin(position)


# The emergency stop


def test_a_stop_latches_until_it_is_released() -> None:
    guard = Guard(ARM, HZ)
    guard.begin(act(0, 0, 0))
    guard.stop("a person came near")
    guard.stop("another reason")
    guard.succeeded()
    guard.begin(act(1, 1, 0))
    assert [guard(act(0, 0, 0), 0.0)[1] for _ in range(2)] == [("stopped",)] * 2
    assert guard.stopped == guard.report()["stopped"] == "a person came near"
    guard.release()
    assert guard(act(1, 1, 0), 0.0)[1] == ()
    assert guard.stopped is None


def test_a_signal_and_another_thread_can_stop_the_robot() -> None:
    guard = Guard(Limits.free(1), HZ)
    before = signal.signal(signal.SIGUSR1, lambda *_: guard.stop("signal"))
    try:
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert guard.stopped == "signal"
    guard.release()
    thread = threading.Thread(target=guard.stop, args=("thread",))
    thread.start()
    thread.join()
    assert guard.stopped == "thread"


def far(guard: Guard, chunks: int, *actions: Action) -> None:
    for _ in range(chunks):
        guard.succeeded()
        for action in actions:
            guard(action, 0.0)


@pytest.mark.parametrize("bad", [act(5.0), act(nan)])
def test_chunk_after_chunk_far_beyond_the_limits_stops_the_robot(bad: Action) -> None:
    guard = Guard(one(), HZ, clamped_chunks=3)
    far(guard, 2, act(0.0), bad, bad)
    far(guard, 1, act(0.0))
    far(guard, 2, act(0.0), bad)
    assert guard.stopped is None
    far(guard, 1, bad)
    assert guard.stopped is not None
    assert guard.stopped.startswith("3 chunks in a row")
    guard.release()
    far(guard, 2, bad)
    assert guard.stopped is None
    assert guard.counts["clamped chunk"] == 7


def test_actions_a_little_beyond_the_bounds_or_too_fast_do_not_stop_the_robot() -> None:
    guard = Guard(one(max_velocity=(0.1,)), HZ, clamped_chunks=2)
    far(guard, 20, act(1.15), act(-1.15))
    assert guard.stopped is None
    assert dict(guard.counts) == {"position": 40, "velocity": 20}


# The breaker


def test_a_policy_that_fails_again_and_again_is_left_alone_for_a_while() -> None:
    guard = Guard(ARM, HZ, failures=2, cool_down_s=3.0)
    guard.failed(DataError("no picture"), 10.0)
    assert guard.may_ask(10.0)
    guard.failed(DataError("no picture"), 11.0)
    assert [guard.may_ask(now) for now in (11.0, 13.9, 14.0, 14.1)] == [False, False, True, False]
    guard.failed(ValueError("still none"), 15.0)  # the trial
    assert [guard.may_ask(now) for now in (17.9, 18.0, 18.1, 21.0)] == [False, True, False, True]
    guard.succeeded()
    guard.failed(DataError("once"), 30.0)
    assert guard.may_ask(30.0)
    assert dict(guard.counts) == {"policy failed": 4, "breaker opened": 1}
    report = guard.report()
    assert (report["failures_in_row"], report["last_failure"]) == (1, "DataError: once")


def test_the_report_is_json_and_holds_every_count() -> None:
    guard = Guard(one(), HZ)
    guard.missed()
    guard.missed()
    guard(act(4.0), 0.0)
    guard.stop("enough")
    guard(act(0.0), 0.0)
    guard.failed(DataError("no picture"), 0.0)
    assert json.loads(json.dumps(guard.report())) == {
        "ticks": 2,
        "counts": {"clamped chunk": 1, "deadline missed": 2, "policy failed": 1, "position": 1, "stopped": 1},
        "stopped": "enough",
        "failures_in_row": 1,
        "last_failure": "DataError: no picture",
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"hz": 0.0},
        {"hz": nan},
        {"max_age_s": 0.0},
        {"failures": 0},
        {"cool_down_s": -1.0},
        {"clamped_chunks": 0},
    ],
)
def test_a_guard_that_cannot_work_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        Guard(ARM, **{"hz": HZ} | fields)  # type: ignore[arg-type]
