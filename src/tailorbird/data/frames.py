"""All pictures of a dataset, decoded once, at the size that the model reads."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tailorbird.data.lerobot import Episode, LeRobotDataset
from tailorbird.errors import StorageError
from tailorbird.processing.image import ImageSpec
from tailorbird.progress import track
from tailorbird.storage import new_file

AT_ONCE = 64  # frames resized together


def load_frames(
    data: LeRobotDataset, spec: ImageSpec, cameras: tuple[str, ...], cache: Path, workers: int
) -> NDArray[np.uint8]:
    """Decode and shrink every frame into a file, or map the file of an earlier call.

    Returns:
        (rows, cameras, size, size, 3) uint8, memory-mapped: it may be larger than the memory.
    Raises:
        StorageError: the disk has no room for it; nothing was written.
    """
    shape = (len(data), len(cameras), spec.size, spec.size, 3)
    made_from = json.dumps([data.fingerprint, asdict(spec), cameras])
    path = cache / f"frames-{hashlib.sha256(made_from.encode()).hexdigest()[:12]}.u8"
    if not path.exists() or path.stat().st_size != int(np.prod(shape)):
        _fill(data, spec, cameras, path, shape, workers)
    return np.memmap(path, np.uint8, "r", shape=shape)


def _fill(
    data: LeRobotDataset,
    spec: ImageSpec,
    cameras: tuple[str, ...],
    path: Path,
    shape: tuple[int, ...],
    workers: int,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    needed, free = int(np.prod(shape)), shutil.disk_usage(path.parent).free
    if needed > free:
        raise StorageError(
            f"the decoded frames of {data.root} need {needed / 1e9:.1f} GB at {path.parent}, "
            f"{free / 1e9:.1f} GB are free: free some space, or choose another folder with --out"
        )

    def shrink(episode: Episode, camera: str) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        for start in range(0, episode.length, AT_ONCE):
            steps = range(start, min(start + AT_ONCE, episode.length))
            pictures = np.stack(list(data.frames(episode, camera, steps)))
            yield episode.start + start, spec.shrink(torch.from_numpy(pictures)).numpy()

    for leftover in path.parent.glob(".frames-*"):  # of a killed process, and large
        leftover.unlink()
    with new_file(path) as temporary, track("decode", len(data.episodes)) as bar:
        _reserve(temporary, needed)
        frames = np.memmap(temporary, np.uint8, "r+", shape=shape)

        def work(episode: Episode) -> None:
            for number, camera in enumerate(cameras):
                for row, pictures in shrink(episode, camera):
                    frames[row : row + len(pictures), number] = pictures

        with ThreadPoolExecutor(workers) as pool:  # the codec leaves Python's lock alone
            for _ in pool.map(work, data.episodes):
                bar.advance()
        frames.flush()


def _reserve(path: Path, num_bytes: int) -> None:
    """Take the room now: a mapped file that runs out of disk later kills the process."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, num_bytes)
        else:
            file.truncate(num_bytes)
