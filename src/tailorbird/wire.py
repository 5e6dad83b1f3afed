"""What crosses the border between a robot and a policy. No torch here."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What a robot sees and feels at one moment.

    images: camera name -> (H, W, 3) uint8, any size.
    state: (state_dim,) float32, physical units.
    task: the instruction, as a person would say it.
    time_s: when it was taken, on the robot's clock.
    """

    images: dict[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    task: str
    time_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ActionChunk:
    """Actions to execute one after the other.

    actions: (L, A) float32, physical units.
    time_s: when the observation was taken that they answer.
    infer_ms: what computing them cost, per stage.
    """

    actions: NDArray[np.float32]
    time_s: float = 0.0
    infer_ms: dict[str, float] = field(default_factory=dict)
