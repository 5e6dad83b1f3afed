"""The loop's place in the line for a core; what the clocks do is in test_runtime.py."""

import os
import threading

import pytest

from tailorbird.control.clock import first_in_line


def policy() -> int:
    return os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK


@pytest.mark.skipif(not hasattr(os, "sched_setscheduler"), reason="a system without SCHED_FIFO")
def test_first_in_line_holds_for_this_thread_alone_and_ends() -> None:
    found: list[int] = []
    with first_in_line() as first:
        assert policy() == (os.SCHED_FIFO if first else os.SCHED_OTHER)
        thread = threading.Thread(target=lambda: found.append(policy()))
        thread.start()
        thread.join()
    assert found == [os.SCHED_OTHER]
    assert policy() == os.SCHED_OTHER


def test_without_the_right_everything_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("not allowed")

    monkeypatch.setattr(os, "sched_setscheduler", refuse, raising=False)
    with first_in_line() as first:
        assert not first
