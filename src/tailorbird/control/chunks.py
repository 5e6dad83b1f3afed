"""The actions that are still to be executed, and how smoothly one chunk goes over into the next."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailorbird.wire import ActionChunk

Actions = NDArray[np.float32]  # (n, A)


class ChunkQueue:
    """Actions by tick.

    A chunk starts at the tick of the observation that it answers; what is past by then is dropped.
    """

    def __init__(self) -> None:
        self._chunk: ActionChunk | None = None
        self._first = 0  # tick of the chunk's first action

    def put(self, chunk: ActionChunk, tick: int) -> None:
        """Replace what is left by a chunk whose observation was taken at `tick`."""
        self._chunk, self._first = chunk, tick

    def left(self, tick: int) -> int:
        """Actions from this tick on."""
        return 0 if self._chunk is None else max(0, self._first + len(self._chunk.actions) - tick)

    def age(self, tick: int) -> int:
        """Ticks since the observation behind the actions at hand."""
        return tick - self._first

    def source(self, tick: int) -> ActionChunk | None:
        """The chunk behind the action of a tick."""
        return self._chunk if self._first <= tick and self.left(tick) else None

    def get(self, tick: int) -> NDArray[np.float32] | None:
        """The action of a tick, (A,), or None when there is none."""
        chunk = self.source(tick)
        return None if chunk is None else chunk.actions[tick - self._first]

    def rest(self, tick: int) -> Actions:
        """The actions from a tick on, (n, A); (0, 0) where there are none."""
        chunk = self.source(tick)
        return np.zeros((0, 0), np.float32) if chunk is None else chunk.actions[tick - self._first :]


class Ensemble:
    """As `ChunkQueue`, but an action is the average over all chunks that have one for its tick.

    Their weights are exp(-m * i), the oldest chunk being i = 0: a small m takes up what is new quickly.
    Source: temporal ensembling of ACT, arXiv 2304.13705.
    """

    def __init__(self, m: float = 0.01) -> None:
        self._m = m
        self._chunks: list[tuple[int, ActionChunk]] = []  # by tick of the first action

    def put(self, chunk: ActionChunk, tick: int) -> None:
        """Add a chunk whose observation was taken at `tick`, and forget those that end before it."""
        self._chunks = [*self._covering(tick), (tick, chunk)]

    def left(self, tick: int) -> int:
        """Actions from this tick on."""
        return max((first + len(chunk.actions) - tick for first, chunk in self._covering(tick)), default=0)

    def age(self, tick: int) -> int:
        """Ticks since the newest observation."""
        return tick - (self._chunks[-1][0] if self._chunks else 0)

    def source(self, tick: int) -> ActionChunk | None:
        """The newest of the chunks behind the action of a tick."""
        return next((chunk for _, chunk in reversed(self._covering(tick))), None)

    def get(self, tick: int) -> NDArray[np.float32] | None:
        """The action of a tick, (A,), or None when there is none."""
        actions = [chunk.actions[tick - first] for first, chunk in self._covering(tick)]
        if not actions:
            return None
        weights = np.exp(-self._m * np.arange(len(actions)))
        return (weights @ np.stack(actions) / weights.sum()).astype(np.float32)

    def rest(self, tick: int) -> Actions:
        """The actions from a tick on, (n, A); (0, 0) where there are none."""
        ahead = (self.get(later) for later in range(tick, tick + self.left(tick)))
        actions = [action for action in ahead if action is not None]
        return np.stack(actions) if actions else np.zeros((0, 0), np.float32)

    def _covering(self, tick: int) -> list[tuple[int, ActionChunk]]:
        return [(first, chunk) for first, chunk in self._chunks if 0 <= tick - first < len(chunk.actions)]


@dataclass(frozen=True, kw_only=True)
class Transitions:
    """How smooth executed actions are where one chunk goes over into the next, and elsewhere.

    Steps are the largest change of any dimension from one tick to the next, in the action's units. Jerk is
    the length of the third difference of actions times hz^3, in those units per second cubed; four ticks make
    one value, which counts as at a border if the border is between any two of them. 0 where there are none.
    """

    border_step: float
    inner_step: float
    border_jerk_rms: float
    border_jerk_max: float
    inner_jerk_rms: float
    inner_jerk_max: float


def transitions(actions: Actions, switches: Sequence[int], hz: float) -> Transitions:
    """Measure an episode.

    Args:
        actions: (T, A), as executed, positions; of displacements or velocities, give their sums.
        switches: the ticks at which a chunk took over.
        hz: ticks a second.
    """
    actions = np.asarray(actions, np.float64)
    is_switch = np.zeros(len(actions), bool)
    is_switch[[tick for tick in switches if 0 < tick < len(actions)]] = True
    steps = np.abs(np.diff(actions, axis=0)).max(axis=1, initial=0.0)  # (T - 1,): from tick t to t + 1
    jerk = np.linalg.norm(np.diff(actions, n=3, axis=0), axis=1) * hz**3  # (T - 3,): of ticks t to t + 3
    at_step = is_switch[1:]
    at_jerk = is_switch[1:-2] | is_switch[2:-1] | is_switch[3:]
    return Transitions(
        border_step=_largest(steps[at_step]),
        inner_step=_largest(steps[~at_step]),
        border_jerk_rms=_rms(jerk[at_jerk]),
        border_jerk_max=_largest(jerk[at_jerk]),
        inner_jerk_rms=_rms(jerk[~at_jerk]),
        inner_jerk_max=_largest(jerk[~at_jerk]),
    )


def _largest(values: NDArray[np.float64]) -> float:
    return float(values.max(initial=0.0))


def _rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(values**2))) if len(values) else 0.0
