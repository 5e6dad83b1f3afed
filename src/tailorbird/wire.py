"""What crosses the border between a robot and a policy. No torch here."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Committed:
    """What a robot will still do of the chunk at hand, so that the next one can go on from there.

    actions: (n, A) float32, physical units; the first belongs to the tick of the observation.
    frozen: how many of them will be executed before the answer is there, as far as one can tell.
    """

    actions: NDArray[np.float32]
    frozen: int


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What a robot sees and feels at one moment.

    images: camera name -> (H, W, 3) uint8, any size.
    state: (state_dim,) float32, physical units.
    task: the instruction, as a person would say it.
    time_s: when it was taken, on the robot's clock.
    image_time_s: when the pictures were taken that are older than that, by camera.
    committed: for real-time chunking; None lets a chunk begin freely.
    """

    images: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    task: str
    time_s: float = 0.0
    image_time_s: Mapping[str, float] = field(default_factory=dict)
    committed: Committed | None = None


@dataclass(frozen=True, kw_only=True)
class ActionChunk:
    """Actions to execute one after the other.

    actions: (L, A) float32, physical units.
    time_s: when the observation was taken whose state they answer.
    scene_time_s: when the oldest picture was taken that they were made with; None is `time_s`.
    infer_ms: what computing them cost, per stage.
    """

    actions: NDArray[np.float32]
    time_s: float = 0.0
    scene_time_s: float | None = None
    infer_ms: Mapping[str, float] = field(default_factory=dict)


def is_loopback(host: str) -> bool:
    """Whether what is sent there stays on this machine. A name other than localhost may mean anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
