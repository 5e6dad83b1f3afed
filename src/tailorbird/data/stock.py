"""Encoded draws of several lanes, by worker processes that end with their parent."""

import signal
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from tailorbird.data.config import RowsConfig
from tailorbird.data.encode import Encoded, Encoder
from tailorbird.data.mixture import Mixture
from tailorbird.data.pack import Refused
from tailorbird.data.sample import BadSample
from tailorbird.errors import DataError


class Draws(Dataset[Encoded | Refused]):
    """The draws of a mixture, encoded: what a worker does."""

    def __init__(self, mixture: Mixture, encoder: Encoder) -> None:
        self._mixture, self._encoder = mixture, encoder

    def __getitem__(self, draw: int) -> Encoded | Refused:
        number, row, _ = self._mixture.at(draw)
        source = self._mixture.parts[number].source
        try:
            return self._encoder.encode(source[row], draw)
        except DataError as error:
            reason = error.reason if isinstance(error, BadSample) else "unreadable row"
            return Refused(draw=draw, source=source.name, reason=reason, message=str(error))


class Stock:
    """Encoded draws, in order for each lane, whoever encoded them.

    todo: the draws of each lane.
    """

    def __init__(self, draws: Draws, todo: Mapping[int, Iterable[int]], cfg: RowsConfig) -> None:
        self._todo = {lane: iter(of_lane) for lane, of_lane in todo.items()}
        self._num_lanes, self._num_workers = cfg.lanes, cfg.workers
        self._ready: dict[int, deque[Encoded | Refused]] = {lane: deque() for lane in todo}
        self._ordered = dict.fromkeys(todo, 0)  # and not taken
        self._wanted = min(todo)
        self._encoded = iter(
            DataLoader(
                draws,
                batch_size=None,
                sampler=self._orders(),
                num_workers=cfg.workers,
                prefetch_factor=cfg.ahead if cfg.workers else None,
                collate_fn=_as_it_is,
                worker_init_fn=_deaf,
                generator=torch.Generator(),  # the global one is not for us to move
            )
        )

    def take(self, lane: int) -> Encoded | Refused | None:
        """The next of a lane; None when there are no more.

        Raises:
            DataError: a worker ended, killed by a person or by the system.
        """
        self._wanted = lane
        while not self._ready[lane]:
            if not self._ordered[lane] and lane not in self._todo:
                return None
            one = self._next()
            if one is not None:
                self._ready[one.draw % self._num_lanes].append(_own(one))
        self._ordered[lane] -= 1
        return self._ready[lane].popleft()

    def _next(self) -> Encoded | Refused | None:
        try:
            return next(self._encoded, None)
        except (RuntimeError, OSError, EOFError) as error:
            if not self._num_workers or not _tells_of_an_end(error):
                raise
            said = str(error) or type(error).__name__
        # Here the error is gone: it would keep the other workers alive as long as someone looks at ours.
        raise DataError(
            f"a process that opens pictures came to an end: {said}. The memory may be full, or the shared "
            "one (df /dev/shm): take fewer --rows.workers, and continue the run"
        )

    def close(self) -> None:
        """End the workers. One that is cut off while it hands something over has failed, but nobody waits."""
        end = getattr(self._encoded, "_shutdown_workers", None)  # what deleting calls, where errors are lost
        if end is not None:
            with suppress(RuntimeError):
                end()
        del self._encoded

    def _orders(self) -> Iterator[int]:
        """What to encode next: something for the lane that waits, else for the one with the least in store.

        So no lane runs far ahead of the others, however fast it fills its rows.
        """
        while self._todo:
            lane = self._wanted
            if lane not in self._todo or self._ordered[lane]:
                lane = min(self._todo, key=lambda one: self._ordered[one])
            draw = next(self._todo[lane], None)
            if draw is None:
                del self._todo[lane]
            else:
                self._ordered[lane] += 1
                yield draw


def _own(one: Encoded | Refused) -> Encoded | Refused:
    """In memory of this process: the shared one is small in containers, and each piece of it an open file."""
    if isinstance(one, Encoded) and one.levels is not None and one.levels.is_shared():
        return replace(one, levels=one.levels.clone())
    return one


def _tells_of_an_end(error: Exception) -> bool:
    """Of a worker: as the loader says it, or as the system does when a worker's last tensor is fetched while
    it is going. What is raised in a worker by our own code begins otherwise."""
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker")
    return not str(error).startswith("Caught ")


def _as_it_is(one: Any) -> Any:
    return one


def _deaf(_: int) -> None:
    """Workers end when their parent says so, or is gone: Ctrl-C and what a cluster sends to all of a job
    reach them too, while the parent still ends its step and saves."""
    for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(kind, signal.SIG_IGN)
