"""The figures of a run: rate, lateness, latency, ages, interventions. They grow tick by tick."""

from collections import Counter
from math import isfinite, nan

import numpy as np
from numpy.typing import NDArray

from tailorbird.control.runtime import LATE_S
from tailorbird.live.feed import Moment

RECENT = 256  # values that a live figure is made of
STAGES = 16  # of a chunk at most: a server says what they are called


class Series:
    """The last values of one kind, in bounded memory."""

    def __init__(self, room: int = 1 << 16) -> None:
        self.count = 0
        self.last = nan
        self._values: NDArray[np.float32] = np.zeros(room, np.float32)

    def add(self, value: float) -> None:
        """What is not finite is not counted: there was nothing to measure."""
        if isfinite(value):
            self._values[self.count % len(self._values)] = value
            self.count += 1
            self.last = value

    def percentile(self, percent: float, recent: int | None = None) -> float:
        """Of the last `recent` values, or of all that are kept; nan without any."""
        values = self._kept(recent)
        return float(np.percentile(values, percent)) if len(values) else nan

    def mean(self, recent: int | None = None) -> float:
        values = self._kept(recent)
        return float(values.mean(dtype=np.float64)) if len(values) else nan

    def _kept(self, recent: int | None) -> NDArray[np.float32]:
        num = min(self.count, len(self._values), recent or self.count)
        return self._values[np.arange(self.count - num, self.count) % len(self._values)]


class Figures:
    """Times in s, of the loop's clock."""

    def __init__(self) -> None:
        self.ticks = self.late = self.held = 0
        self.episode = 0
        self.left = self.room = 0  # actions at hand after the last tick, and at most so far
        self.period = Series()  # from one tick to the next
        self.start = Series()  # of a tick, after its time
        self.latency, self.age, self.scene_age = Series(), Series(), Series()
        self.stages: dict[str, Series] = {}
        self.interventions: Counter[str] = Counter()
        self.doing: tuple[str, ...] = ()  # interventions in the last tick
        self._before: Moment | None = None

    def take(self, moment: Moment) -> None:
        tick = moment.tick
        if self._before is not None and self._before.episode == moment.episode:
            before = self._before.tick
            self.period.add((tick.began_s - before.began_s) / (tick.number - before.number))
        self._before, self.episode = moment, moment.episode
        self.ticks += 1
        self.held += tick.held
        self.late += tick.began_s - tick.due_s > LATE_S
        self.start.add(tick.began_s - tick.due_s)
        self.age.add(tick.age_s)
        self.scene_age.add(tick.scene_age_s)
        self.left, self.room = tick.left, max(self.room, tick.left)
        self.interventions.update(tick.interventions)
        self.doing = tick.interventions
        if tick.chunk is not None:
            self.latency.add(arrival_s(moment) - tick.asked_s)
            for stage, ms in tick.chunk.infer_ms.items():
                if stage in self.stages or len(self.stages) < STAGES:
                    self.stages.setdefault(stage, Series()).add(ms / 1e3)

    def hz(self, recent: int | None = None) -> float:
        """Ticks a second."""
        return 1 / self.period.mean(recent)


def arrival_s(moment: Moment) -> float:
    """When the chunk of a tick arrived: no later than its first use, no earlier than its stages allow."""
    tick = moment.tick
    assert tick.chunk is not None
    spent_s = sum(tick.chunk.infer_ms.values()) / 1e3
    acted_s = min((span.began_s for span in moment.spans if span.name == "act"), default=tick.ended_s)
    return min(max(tick.began_s, tick.asked_s + spent_s), acted_s)
