"""Batches for training, each a function of (seed, step); the bytes are gathered one step ahead."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tailorbird.data.augment import change
from tailorbird.data.config import LoadConfig
from tailorbird.data.lerobot import LeRobotDataset
from tailorbird.data.order import batch_rows, seed_of
from tailorbird.errors import DataError
from tailorbird.processing.pipeline import Pipeline
from tailorbird.types import Batch

STALE = 1  # tells the draws of pictures' ages from others of the same step


class Loader:
    """Endless batches of (observation, action chunk, validity).

    frames: those of each of the pipeline's `seen_cameras`, from `load_frames`.
    rows: the part of the dataset to draw from.
    """

    def __init__(
        self,
        data: LeRobotDataset,
        frames: Sequence[NDArray[np.uint8]],
        pipeline: Pipeline,
        *,
        rows: NDArray[np.int64],
        cfg: LoadConfig,
    ) -> None:
        if len(rows) < cfg.batch:
            raise DataError(
                f"{len(rows)} frames cannot fill a batch of {cfg.batch}: record more, or lower --train.batch"
            )
        self.data, self.frames, self.pipeline, self.rows, self.cfg = data, frames, pipeline, rows, cfg

    def load(self, rows: NDArray[np.int64]) -> Batch:
        """The batch of the given rows, as they are."""
        return self._finish(rows, self._gather(rows))

    def at(self, step: int) -> Batch:
        """The batch of a training step, augmented."""
        return self._augmented(*self._fetch(step), step)

    def names(self, step: int) -> list[str]:
        """Of the observations of a training step: where in the dataset they are."""
        rows = self._rows_of(step)
        episodes = self.data.episode_index[rows]
        return [
            f"episode {episode}, frame {row - self.data.episodes[episode].start}"
            for row, episode in zip(rows, episodes, strict=True)
        ]

    def stream(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of the steps [start, stop). Frames are read one step ahead, in a thread.

        The thread only copies bytes: if it computed with torch, its team of threads would take the cores away
        from training (a step would cost half as much again on two cores).
        """
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self._fetch, start)
            for step in range(start, stop):
                fetched = ahead.result()
                ahead = pool.submit(self._fetch, step + 1)
                yield self._augmented(*fetched, step)

    def _fetch(self, step: int) -> tuple[NDArray[np.int64], list[Tensor]]:
        rows = self._rows_of(step)
        return rows, self._gather(self._older(rows, step))

    def _rows_of(self, step: int) -> NDArray[np.int64]:
        return self.rows[batch_rows(len(self.rows), self.cfg.batch, self.cfg.seed, step)]

    def _older(self, rows: NDArray[np.int64], step: int) -> NDArray[np.int64]:
        """Of the pictures that go with the states of `rows`: as many frames before as is drawn for each."""
        if not self.cfg.augment.stale:
            return rows
        draw = np.random.default_rng([self.cfg.seed, step, STALE])
        ages = draw.integers(0, self.cfg.augment.stale, len(rows), endpoint=True)
        starts = np.array([episode.start for episode in self.data.episodes])
        return np.maximum(rows - ages, starts[self.data.episode_index[rows]])

    def _gather(self, rows: NDArray[np.int64]) -> list[Tensor]:
        return [torch.from_numpy(frames[rows]) for frames in self.frames]

    def _augmented(self, rows: NDArray[np.int64], frames: Sequence[Tensor], step: int) -> Batch:
        seed = seed_of(self.cfg.seed, step)  # the same for every camera: they all move alike

        def changed(one: Tensor) -> Tensor:
            return change(one[:, None], self.cfg.augment, torch.Generator().manual_seed(seed))[:, 0]

        return self._finish(rows, [changed(one) for one in frames])

    def _finish(self, rows: NDArray[np.int64], frames: Sequence[Tensor]) -> Batch:
        actions, valid = self.data.chunk(rows, self.cfg.chunk)
        tasks = [self.data.tasks[i] for i in self.data.task_index[rows]]
        return Batch(
            inputs=self.pipeline.prepare(frames, torch.from_numpy(self.data.state[rows]), tasks),
            actions=self.pipeline.prepare_actions(torch.from_numpy(actions)),
            valid=torch.from_numpy(valid),
        )


def split_episodes(
    data: LeRobotDataset, share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to learn from, and rows of whole episodes held out: about `share` of them, at least one."""
    num = len(data.episodes)
    held = np.zeros(num, bool)
    held[np.random.default_rng(seed).permutation(num)[: max(1, round(share * num))]] = True
    apart = held[data.episode_index]
    return np.flatnonzero(~apart), np.flatnonzero(apart)
