"""Settings of closed-loop runs."""

from dataclasses import dataclass, field
from typing import Literal

from tailorbird.errors import ConfigError
from tailorbird.sim.config import HORIZON, SIM_HZ, SimConfig
from tailorbird.sim.tasks import INSTRUCTIONS

Condition = Literal["normal", "shuffled", "black"]


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """Which situations, for how long, and how the policy is driven.

    Attributes:
        seeds: played per task, from first_seed on.
        max_s: simulated seconds until an unsolved episode counts as failed.
        execute: actions of each chunk that are executed before the next one is asked for.
        delay_s: simulated seconds that a chunk is late, while the robot goes on with the one before; at 0 the
            robot waits.
        film: record a video of the first seed of each task, with the expert's opinion beside each action.
    """

    tasks: tuple[str, ...] = ("push-v3",)
    seeds: int = 20
    first_seed: int = 0
    max_s: float = 5.0
    execute: int = 2
    delay_s: float = 0.0
    film: bool = True
    film_size: int = 320
    sim: SimConfig = field(default_factory=SimConfig)

    def __post_init__(self) -> None:
        unknown = [task for task in self.tasks if task not in INSTRUCTIONS]
        if unknown or not self.tasks:
            raise ConfigError(f"no tasks {unknown} in Meta-World; there are {', '.join(INSTRUCTIONS)}")
        if self.first_seed < 0 or self.film_size < 16 or self.film_size % 2:
            raise ConfigError(f"first_seed cannot be negative, film_size is even and at least 16: {self}")
        if not 0 < self.max_s <= HORIZON / SIM_HZ or self.seeds < 1 or self.delay_s < 0:
            raise ConfigError(
                f"max_s in (0, {HORIZON / SIM_HZ}], seeds at least 1, delay_s at least 0: {self}"
            )
