"""The loop's place in the line for a core; what the clocks do is in test_runtime.py."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from tailorbird.control.clock import first_in_line


def policy() -> int:
    return os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK


@pytest.mark.skipif(not hasattr(os, "sched_setscheduler"), reason="a system without SCHED_FIFO")
def test_first_in_line_are_the_threads_that_are_there_and_only_for_a_while() -> None:
    with ThreadPoolExecutor(1) as early, ThreadPoolExecutor(1) as later:
        early.submit(policy).result()
        with first_in_line() as first:
            ours = os.SCHED_FIFO if first else os.SCHED_OTHER
            assert policy() == early.submit(policy).result() == ours
            assert later.submit(policy).result() == os.SCHED_OTHER
        assert policy() == early.submit(policy).result() == os.SCHED_OTHER


def test_without_the_right_everything_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("not allowed")

    monkeypatch.setattr(os, "sched_setscheduler", refuse, raising=False)
    with first_in_line() as first:
        assert not first
