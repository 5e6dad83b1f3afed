"""Small made-up demonstrations: no simulator, all sizes distinct."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tailorbird.data.stats import describe_frames
from tailorbird.data.video import encode
from tailorbird.data.writer import DatasetWriter, Demonstration, Layout

FPS = 10
CAMERAS = {"front": (32, 48), "wrist": (24, 40)}
LAYOUT = Layout(
    fps=FPS,
    robot="toy_arm",
    state_names=("x", "y", "z"),
    action_names=("dx", "dy"),
    cameras=CAMERAS,
)
TASKS = ("open the drawer", "press the button")


def pictures(length: int, height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """A gradient with a square that moves: (length, height, width, 3)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    ground = np.stack([rows * 3, columns * 2, (rows + columns) * 2], -1) + rng.integers(0, 60)
    frames = np.repeat(ground[None], length, 0).clip(0, 255).astype(np.uint8)
    colour = rng.integers(80, 256, 3)
    for step in range(length):
        left = (4 * seed + 2 * step) % (width - 8)
        frames[step, 8:16, left : left + 8] = colour
    return frames


def make_demo(seed: int, length: int | None = None, task: str | None = None) -> Demonstration:
    """Episode `seed`: its own numbers, pictures and, unless given, length and task."""
    rng = np.random.default_rng(seed)
    length = length or 7 + 3 * seed % 8
    views = {name: pictures(length, *size, seed) for name, size in CAMERAS.items()}
    return Demonstration(
        task=task or TASKS[seed % 2],
        state=rng.standard_normal((length, 3)).astype(np.float32),
        action=rng.uniform(-1, 1, (length, 2)).astype(np.float32),
        videos={name: encode(frames, FPS, crf=10) for name, frames in views.items()},
        picture_stats={name: describe_frames(frames) for name, frames in views.items()},
        facts={"seed": seed},
    )


def write_dataset(root: Path, seeds: range, layout: Layout = LAYOUT, **limits_mb: float) -> None:
    writer = DatasetWriter(root, layout, **limits_mb)
    for seed in seeds:
        writer.add(make_demo(seed))
    writer.finish()


def files(root: Path) -> dict[str, bytes]:
    """Everything in a dataset but what killed writers left."""
    found = (f for f in root.rglob("*") if f.is_file() and not f.name.startswith("."))
    return {str(f.relative_to(root)): f.read_bytes() for f in found}


def one_camera(demo: Demonstration, name: str) -> Demonstration:
    return replace(demo, videos={name: demo.videos[name]}, picture_stats={name: demo.picture_stats[name]})
