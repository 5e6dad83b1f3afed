"""The actions that are still to be executed."""

import numpy as np
from numpy.typing import NDArray

from tailorbird.wire import ActionChunk


class ChunkQueue:
    """Actions by tick.

    A chunk starts at the tick of the observation that it answers; what is past by then is dropped.
    """

    def __init__(self) -> None:
        self._actions: NDArray[np.float32] = np.zeros((0, 0), np.float32)
        self._first = 0  # tick of _actions[0]

    def put(self, chunk: ActionChunk, tick: int) -> None:
        """Replace what is left by a chunk whose observation was taken at `tick`."""
        self._actions, self._first = chunk.actions, tick

    def left(self, tick: int) -> int:
        """Actions from this tick on."""
        return max(0, self._first + len(self._actions) - tick)

    def age(self, tick: int) -> int:
        """Ticks since the observation behind the actions at hand."""
        return tick - self._first

    def get(self, tick: int) -> NDArray[np.float32] | None:
        """The action of a tick, (A,), or None when there is none."""
        return self._actions[tick - self._first] if self._first <= tick and self.left(tick) else None
