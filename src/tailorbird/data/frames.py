"""All pictures of a dataset, decoded once, as small as the model allows."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tailorbird.data.lerobot import Episode, LeRobotDataset
from tailorbird.errors import StorageError
from tailorbird.processing.image import ImageSpec, Letterbox
from tailorbird.progress import track
from tailorbird.storage import new_file

AT_ONCE = 64  # frames resized together


Spec = ImageSpec | Letterbox


def load_frames(
    data: LeRobotDataset, spec: Spec, cameras: Sequence[str], cache: Path, workers: int
) -> list[NDArray[np.uint8]]:
    """Decode and shrink every frame into a file for each camera, or map the files of an earlier call.

    Returns:
        (rows, H, W, 3) uint8 for each camera, memory-mapped: it may be larger than the memory.
    Raises:
        StorageError: the disk has no room for it; nothing was written.
    """
    shapes = {camera: (len(data), *_size(data, spec, camera), 3) for camera in cameras}
    paths = {camera: cache / _name(data, spec, camera) for camera in cameras}
    absent = [
        camera
        for camera, path in paths.items()
        if not path.exists() or path.stat().st_size != math.prod(shapes[camera])
    ]
    if absent:
        _prepare(data, cache, sum(math.prod(shapes[camera]) for camera in absent))
    for camera in absent:
        _fill(data, spec, camera, paths[camera], shapes[camera], workers)
    return [np.memmap(paths[camera], np.uint8, "r", shape=shapes[camera]) for camera in cameras]


def _name(data: LeRobotDataset, spec: Spec, camera: str) -> str:
    made_from = json.dumps([data.fingerprint, type(spec).__name__, asdict(spec), camera])
    return f"frames-{hashlib.sha256(made_from.encode()).hexdigest()[:12]}.u8"


def _size(data: LeRobotDataset, spec: Spec, camera: str) -> tuple[int, int]:
    """Height and width of the camera's frames once they are shrunk."""
    if isinstance(spec, ImageSpec):
        return spec.size, spec.size
    first = next(data.frames(data.episodes[0], camera, [0]))
    return first.shape[0], first.shape[1]


def _prepare(data: LeRobotDataset, cache: Path, needed: int) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if needed > free:
        raise StorageError(
            f"the decoded frames of {data.root} need {needed / 1e9:.1f} GB at {cache}, "
            f"{free / 1e9:.1f} GB are free: free some space, or choose another folder with --out"
        )
    for leftover in cache.glob(".frames-*"):  # of a killed process, and large
        leftover.unlink()


def _fill(
    data: LeRobotDataset, spec: Spec, camera: str, path: Path, shape: tuple[int, ...], workers: int
) -> None:
    def shrink(episode: Episode) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        for start in range(0, episode.length, AT_ONCE):
            steps = range(start, min(start + AT_ONCE, episode.length))
            pictures = np.stack(list(data.frames(episode, camera, steps)))
            yield episode.start + start, spec.shrink(torch.from_numpy(pictures)).numpy()

    with new_file(path) as temporary, track(f"decode {camera}", len(data.episodes)) as bar:
        _reserve(temporary, math.prod(shape))
        frames = np.memmap(temporary, np.uint8, "r+", shape=shape)

        def work(episode: Episode) -> None:
            for row, pictures in shrink(episode):
                frames[row : row + len(pictures)] = pictures

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
