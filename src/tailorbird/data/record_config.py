"""Settings of recording. Importable without torch."""

from dataclasses import dataclass, field

from tailorbird.errors import ConfigError
from tailorbird.sim.config import HORIZON, SIM_HZ, ActionNoise, SimConfig
from tailorbird.sim.tasks import INSTRUCTIONS


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """Which demonstrations to record.

    Attributes:
        demos: successful demonstrations to keep, per Meta-World task.
        first_seed: of each task; attempt i plays seed first_seed + i.
        max_s: simulated seconds after which an attempt has failed.
        after_s: simulated seconds that an episode goes on once it is solved.
        crf: quality of the video, 0 (lossless) to 51.
    """

    demos: dict[str, int]
    first_seed: int = 1000
    max_s: float = 3.0
    after_s: float = 0.15
    crf: int = 14
    sim: SimConfig = field(default_factory=SimConfig)
    noise: ActionNoise = field(default_factory=ActionNoise)

    def __post_init__(self) -> None:
        unknown = set(self.demos) - set(INSTRUCTIONS)
        if unknown or not self.demos or min(self.demos.values()) < 1:
            raise ConfigError(
                f"cannot record {self.demos}: name Meta-World tasks and at least one demonstration each; "
                f"there are {', '.join(INSTRUCTIONS)}"
            )
        if self.first_seed < 0 or self.after_s < 0 or not 0 <= self.crf <= 51:
            raise ConfigError(f"first_seed and after_s cannot be negative, crf is in [0, 51]: {self}")
        if not 0 < self.max_s <= HORIZON / SIM_HZ or self.sim.size % 2:
            raise ConfigError(
                f"{self.max_s=} must be in (0, {HORIZON / SIM_HZ}], and {self.sim.size=} even for video"
            )
