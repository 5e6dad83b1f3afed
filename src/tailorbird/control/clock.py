"""Time, real or simulated, and the loop's claim to it."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


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


@contextmanager
def first_in_line() -> Iterator[bool]:
    """This thread runs before whatever else wants its core, where the system permits: SCHED_FIFO, of Linux.

    That takes root, CAP_SYS_NICE, or a limit `ulimit -r` of 1. Yields whether it does. Threads and processes
    that are started meanwhile do not inherit it.
    """
    if not hasattr(os, "sched_setscheduler"):
        yield False
        return
    kept = os.SCHED_RESET_ON_FORK  # once set, only root may take it away; it does no harm
    before, param = os.sched_getscheduler(0) | kept, os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | kept, os.sched_param(1))
    except PermissionError:
        yield False
        return
    try:
        yield True
    finally:
        os.sched_setscheduler(0, before, param)
