"""Time, real or simulated."""

import time
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
