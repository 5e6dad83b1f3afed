"""Settings of closed-loop runs."""

from dataclasses import dataclass, field
from typing import Literal

from tailorbird.control.config import Mode
from tailorbird.errors import ConfigError
from tailorbird.infer.config import Engine
from tailorbird.sim.config import HORIZON, SIM_HZ, SimConfig
from tailorbird.sim.tasks import INSTRUCTIONS

Condition = Literal["normal", "shuffled", "black"]
PolicyDtype = Literal["float32", "bfloat16", "float16", "int8"]


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """Which situations, for how long, and how the policy is driven.

    Attributes:
        seeds: played per task, from first_seed on.
        max_s: simulated seconds until an unsolved episode counts as failed.
        execute: actions of each chunk that are executed before the next one is asked for.
        delay_s: simulated seconds that a chunk takes; at 0 the simulation waits for it.
        mode: sync: the robot holds meanwhile. async: it goes on with the chunk before. reuse: so too, and the
            action expert runs on the newest state over the pictures that were read last. rtc: as async, and
            chunks go on from the one before (arXiv 2506.07339).
        expert_share: of the delay, what the action expert takes; the rest is reading pictures and words.
        rename: the simulator's name of its camera to the policy's.
        without: cameras of the policy that the simulator does not show.
        stats: dataset, or set in a policy of lerobot, to normalise with, if the policy does not say.
        engine: torch is exact, openvino faster; what is quantised acts in int8 there.
        dtype: of the weights; None is float32, or int8 for what is quantised.
        film: record a video of the first seed of each task, with the expert's opinion beside each action.
    """

    tasks: tuple[str, ...] = ("push-v3",)
    seeds: int = 20
    first_seed: int = 0
    max_s: float = 5.0
    execute: int = 2
    delay_s: float = 0.0
    mode: Mode = "async"
    expert_share: float = 0.15
    rename: dict[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    stats: str | None = None
    engine: Engine = "torch"
    dtype: PolicyDtype | None = None
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
        if not 0 < self.expert_share <= 1:
            raise ConfigError(f"{self.expert_share=} must be in (0, 1]")


PCC = {"float32": 0.999999, "bfloat16": 0.999, "float16": 0.999, "int8": 0.99}


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """What a policy is compared with, in which situations, and what passes.

    Attributes:
        against: fp32, the same policy in full precision; reference, lerobot, which must be installed; the
            folder of another policy, such as the one that an int8 one was made from; or a file that --save
            wrote, on another machine or by another version.
        dtype: the precision under test; int8 for what is quantised.
        engine: the engine under test; fp32 and lerobot are always torch.
        device: auto, cpu, cuda, cuda:1, ...
        revision: branch, tag or commit on the hub.
        stats: dataset, or set in the policy, to normalise with, if the policy does not say.
        scenes: simulated scenes that are shown, 2 to 8.
        runs: of the same observation, which must all give the same actions.
        seed: of the noise.
        min_pcc: least correlation; by default 0.999999 in fp32 and 0.999 below.
        min_change: least change of the actions, in their standard deviations, when a picture goes black or
            the instruction is another.
    """

    against: str = "fp32"
    dtype: PolicyDtype = "bfloat16"
    engine: Engine = "torch"
    device: str = "auto"
    revision: str | None = None
    stats: str | None = None
    scenes: int = 4
    runs: int = 20
    seed: int = 0
    min_pcc: float | None = None
    min_change: float = 0.01

    def __post_init__(self) -> None:
        if not 2 <= self.scenes <= 8 or self.runs < 2 or self.min_change < 0 or self.seed < 0:
            raise ConfigError(
                f"scenes from 2 to 8, runs at least 2, min_change and seed not negative: {self}"
            )

    @property
    def limit(self) -> float:
        return PCC[self.dtype] if self.min_pcc is None else self.min_pcc
