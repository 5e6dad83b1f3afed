"""Pictures, instructions and states of real simulated scenes, for any policy. Made by bench/scenes.py."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tailorbird.errors import ConfigError
from tailorbird.processing.picture import open_picture
from tailorbird.processing.pipeline import Pipeline
from tailorbird.storage import read_json
from tailorbird.wire import Observation

FOLDER = Path(__file__).parent / "pictures"
SEED = 0  # of states that are drawn


def load_scenes() -> list[Observation]:
    """What Meta-World's corner2 sees of eight tasks, 192 px, and the gripper's position and opening."""
    found = read_json(FOLDER / "scenes.json")
    return [
        Observation(
            images={found["camera"]: open_picture(FOLDER / one["picture"]).numpy()},
            state=np.array(one["state"], np.float32),
            task=one["task"],
        )
        for one in found["scenes"]
    ]


def fit_scenes(pipeline: Pipeline, num: int) -> tuple[list[Observation], str]:
    """The first scenes as this policy would observe them, and in words where their states are from.

    A policy of the simulator's robot and camera gets them as they are. For another one each camera shows the
    scene after the one before, and the state is drawn from the policy's statistics.

    Raises:
        ConfigError: there are not so many scenes.
    """
    scenes = load_scenes()
    if not 2 <= num <= len(scenes):
        raise ConfigError(f"{num} scenes are asked for, there are {len(scenes)}: name 2 to {len(scenes)}")
    cameras = pipeline.robot_cameras
    pictures = [picture for one in scenes for picture in one.images.values()]
    native = set(cameras) == set(scenes[0].images) and pipeline.state.width == len(scenes[0].state)
    states = [one.state for one in scenes] if native else _draw_states(pipeline, num)
    seen = [
        Observation(
            images={name: pictures[(i + j) % len(pictures)] for j, name in enumerate(cameras)},
            state=states[i],
            task=scenes[i].task,
        )
        for i in range(num)
    ]
    return seen, "the simulator" if native else "the policy's statistics, and chance"


def blackened(seen: Sequence[Observation], camera: str) -> list[Observation]:
    """The same with a camera that sees nothing."""
    return [_replaced(one, {**one.images, camera: np.zeros_like(one.images[camera])}) for one in seen]


def swapped(seen: Sequence[Observation]) -> list[Observation]:
    """The same with the pictures of the cameras in reverse order."""
    return [
        _replaced(one, dict(zip(one.images, reversed([*one.images.values()]), strict=True))) for one in seen
    ]


def retold(seen: Sequence[Observation]) -> list[Observation]:
    """The same, each told the task of another."""
    tasks = [one.task for one in seen]
    return [
        Observation(images=one.images, state=one.state, task=task)
        for one, task in zip(seen, [*tasks[1:], tasks[0]], strict=True)
    ]


def _replaced(one: Observation, images: dict[str, NDArray[np.uint8]]) -> Observation:
    return Observation(images=images, state=one.state, task=one.task)


def _draw_states(pipeline: Pipeline, num: int) -> list[NDArray[np.float32]]:
    normal = torch.randn(num, pipeline.state.width, generator=torch.Generator().manual_seed(SEED))
    return list(pipeline.state.inverse(normal).numpy())
