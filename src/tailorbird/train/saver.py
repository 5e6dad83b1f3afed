"""Checkpoints are written beside the training, one at a time."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self


class Saver:
    """Calls what writes a checkpoint in a thread. An error there is raised at the next call of any method."""

    def __init__(self, newest: Path | None) -> None:
        self.newest = newest  # finished one
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Path] | None = None

    def submit(self, write: Callable[[], Path]) -> None:
        """Write when the one before is done: its copy of the weights is the only one beside this."""
        self.join()
        self._writing = self._pool.submit(write)

    def check(self) -> None:
        if self._writing is not None and self._writing.done():
            self.join()

    def join(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            self.newest = writing.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()  # what is being written is finished, whatever ended the training
