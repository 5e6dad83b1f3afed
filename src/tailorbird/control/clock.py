"""Time, real or simulated, and the loop's claim to it."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
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
    """This process runs before whatever else wants its core, where the system permits: SCHED_FIFO, of Linux.

    All threads that it has do: one that had to wait while it holds Python's lock would keep the loop waiting.
    It takes root, CAP_SYS_NICE, or a limit `ulimit -r` of 1. Yields whether it does. Threads and processes
    that are started meanwhile do not inherit it. What polls must not be first: the kernel's own threads,
    which bring a bus's answer, would never have their turn.
    """
    if not hasattr(os, "sched_setscheduler"):
        yield False
        return
    threads = [int(thread.name) for thread in Path("/proc/self/task").iterdir()]
    try:
        _schedule(threads, os.SCHED_FIFO, 1)
    except PermissionError:
        yield False
        return
    try:
        yield True
    finally:
        _schedule(threads, os.SCHED_OTHER, 0)


def _schedule(threads: list[int], policy: int, priority: int) -> None:
    """The flag is never taken away again: only root could, and it does no harm."""
    for thread in threads:
        with suppress(ProcessLookupError):  # it has ended
            os.sched_setscheduler(thread, policy | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
