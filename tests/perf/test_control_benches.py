"""What the benchmarks of control conclude from what they see."""

import sys
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailorbird.control.runtime import Tick

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import control_rates
import delay
from soak import HZ, MAX_AGE_S, Judge


def tick(number: int, *, moves: bool = True, age_s: float = 0.1, late_s: float = 0.0, **fields: Any) -> Tick:
    due_s = 5 + number / HZ
    return Tick(
        number=number,
        due_s=due_s,
        began_s=due_s + late_s,
        ended_s=due_s + late_s,
        action=np.array([0.5 * moves, 0, 0, 0.7], np.float32),
        held=bool(fields.get("held")),
        age_s=age_s,
        scene_age_s=age_s,
        left=3,
        interventions=(),  # what the guard says of itself is not asked
        seen=None,
        chunk=None,
        asked_s=nan,
    )


def judged(*ticks: Tick) -> Judge:
    judge = Judge()
    for one in ticks:
        judge(one)
    return judge


def test_a_robot_that_moves_where_it_had_to_hold_is_found_whatever_the_guard_says() -> None:
    still = [tick(i, moves=False, held=True, age_s=nan) for i in range(3)]
    assert judged(*still, tick(3), tick(4)).missed_watchdogs([]) == 0
    assert judged(tick(0, held=True, age_s=nan)).missed_watchdogs([]) == 1
    assert judged(tick(0, age_s=MAX_AGE_S + 0.01)).missed_watchdogs([]) == 1
    moving = [tick(i) for i in range(10)]
    assert (
        judged(*moving).missed_watchdogs([(5 + 1.5 / HZ, 5 + 7.5 / HZ)]) == 4
    )  # a tick's grace at both ends


@pytest.mark.parametrize("action", [[nan, 0, 0, 0], [1.5, 0, 0, 0], [0, 0, 0, -1.01]])
def test_an_action_beyond_the_limits_is_found(action: list[float]) -> None:
    assert judged(replace(tick(0), action=np.array(action, np.float32))).out_of_limits == 1
    assert judged(tick(0)).out_of_limits == 0


def test_ticks_that_slip_are_drift() -> None:
    slow = judged(*(tick(i, late_s=1e-4 * i) for i in range(300)))
    assert slow.drift_ms_per_min() == pytest.approx(60 * HZ * 0.1)
    assert judged(*(tick(i, late_s=1e-4) for i in range(300))).drift_ms_per_min() == pytest.approx(
        0, abs=1e-6
    )


def test_late_success_and_jerk_are_held_against_what_was_asked() -> None:
    rows = [
        {"path": mode, "delay_ms": ms, "success": success, "added_jerk": jerk, "inner_jerk": 200.0}
        for mode, ms, success, jerk in [
            ("async", 0, 0.9, None),
            ("sync", 300, 0.2, 9.0),
            ("async", 300, 0.8, 60.0),
            ("reuse", 300, 0.87, 50.0),
            ("rtc", 300, 0.84, 10.0),
        ]
    ]
    points, jerk = delay.targets(rows)
    assert points["found"] == pytest.approx(3)
    assert "by reuse" in points["what"]
    assert (points["met"], jerk["found"], jerk["met"]) == (True, 6.0, True)
    rows[-1]["added_jerk"] = 0.0
    assert delay.targets(rows)[1]["found"] == 30.0  # the least that is noticed is a hundredth of 200


def test_late_ticks_and_calls_on_an_old_scene_are_held_against_what_was_asked() -> None:
    row = {"model": control_rates.SMOLVLA, "hz": 100, "cameras": 1, "views": "joint", "failures": 0}
    rows = [
        {**row, "path": "async", "refresh_s": "", "late_share": 0.0, "chunk_ms": 900.0},
        {**row, "path": "reuse", "refresh_s": 0.0, "late_share": 0.02, "chunk_ms": 500.0},
        {**row, "path": "reuse", "refresh_s": control_rates.RARELY_S, "late_share": 0.01, "chunk_ms": 300.0},
    ]
    failed, late, cheaper = control_rates.targets(rows, 0.003)
    assert failed["met"]
    assert (late["found"], late["met"]) == (pytest.approx(0.01), False)
    assert "nothing 0.30%" in late["what"]
    assert (cheaper["found"], cheaper["met"]) == (3.0, False)
