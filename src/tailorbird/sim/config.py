"""Settings of the simulated world. Importable without the simulator."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailorbird.errors import ConfigError

SIM_HZ = 80  # of the simulator's own steps
HORIZON = 500  # simulator steps after which Meta-World refuses to go on


@dataclass(frozen=True, kw_only=True)
class SimConfig:
    """How the world is seen and how often it is acted upon.

    Attributes:
        camera: corner, corner2, corner3, corner4, topview, behindGripper or gripperPOV.
        size: of the square picture, in px.
        control_hz: 80 divided by a whole number; an action is held for the simulator steps in between.
        faithful: pictures as published evaluations have them, with shadows and multisampling; slow.
    """

    camera: str = "corner2"
    size: int = 256
    control_hz: int = 20
    faithful: bool = False

    def __post_init__(self) -> None:
        if self.control_hz < 1 or SIM_HZ % self.control_hz:
            raise ConfigError(f"{self.control_hz=} must divide the simulator's {SIM_HZ} Hz")
        if self.size < 16:
            raise ConfigError(f"{self.size=} px is too small for a picture")

    @property
    def repeat(self) -> int:
        """Simulator steps per action."""
        return SIM_HZ // self.control_hz


PUBLISHED = SimConfig(size=480, control_hz=80, faithful=True)  # what results on MT50 are reported with


@dataclass(frozen=True, kw_only=True)
class ActionNoise:
    """Pushes against the arm while the expert goes on: white noise, now and then a shove.

    The dataset keeps the expert's intention, not the disturbed action (DART, arXiv:1703.09327). The gripper's
    own command is left alone. All amplitudes are in action units.
    """

    white: float = 0.1
    shove: float = 1.0  # largest component of a shove
    shove_rate: float = 0.1  # chance of one starting, per action
    shove_steps: int = 2
    share: float = 0.5  # of the episodes that are disturbed at all

    def __post_init__(self) -> None:
        if not (
            0 <= self.share <= 1 and 0 <= self.shove_rate <= 1 and self.white >= 0 and self.shove_steps >= 1
        ):
            raise ConfigError(f"not a disturbance: {self}")

    def draw(self, num_steps: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """Offsets for one episode, (num_steps, 4)."""
        offsets = np.zeros((num_steps, 4))
        if rng.random() >= self.share:
            return offsets.astype(np.float32)
        offsets[:, :3] = self.white * rng.standard_normal((num_steps, 3))
        step = 0
        while step < num_steps:
            if rng.random() < self.shove_rate:
                offsets[step : step + self.shove_steps, :3] = rng.uniform(-self.shove, self.shove, 3)
                step += self.shove_steps
            step += 1
        return offsets.astype(np.float32)
