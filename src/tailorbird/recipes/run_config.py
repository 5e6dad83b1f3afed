"""Settings of a run in real time. Importable without torch."""

from dataclasses import dataclass, field
from math import inf

from tailorbird.control.config import Mode
from tailorbird.errors import ConfigError
from tailorbird.evals.config import PolicyDtype
from tailorbird.infer.config import PolicyEngine
from tailorbird.sim.config import SimConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How a policy drives one robot by the wall clock.

    Attributes:
        mode: sync: the robot holds while a chunk is made. async: the next one is made meanwhile. reuse: as
            async, and the newest state acts over the pictures that were read last. rtc: as async, and each
            chunk goes on from what is already committed.
        hz: ticks a second, also of a simulated robot, whose time passes like ours; None is its control_hz. A
            real robot needs it.
        execute: age in ticks at which a chunk is replaced by the next.
        ensemble: the chunks that cover a tick are averaged, instead of the newest.
        refresh_s: with reuse, age of the pictures at which the next ones are read; 0 reads all the time.
        max_age_s: of the observation that an action answers; an older one is not executed, so a policy that
            is slow needs more.
        seconds: length of an episode at most.
        episodes: played one after the other.
        seed: of the first episode's scene and noise; the next one has the next.
        slow_ms: by which the policy is slowed, to see what a slower one would do.
        timeout_s: of a server, for a chunk; until then it is waited for.
        task: what a real robot is told; a simulated one has its instruction.
        engine: torch is exact, openvino faster.
        dtype: of the weights; None is float32, or int8 for what is quantised.
        device: auto, cpu, cuda, cuda:1, ...
        rename: the robot's names of cameras to the policy's.
        without: cameras of the policy that the robot does not have.
        stats: dataset, or set in a policy of lerobot, to normalise with, if the policy does not say.
    """

    mode: Mode = "async"
    hz: float | None = None
    execute: int = 2
    ensemble: bool = False
    refresh_s: float = 0.0
    max_age_s: float = 1.0
    seconds: float = 6.0
    episodes: int = 1
    seed: int = 0
    slow_ms: float = 0.0
    timeout_s: float = 2.0
    task: str | None = None
    engine: PolicyEngine = "torch"
    dtype: PolicyDtype | None = None
    device: str = "auto"
    rename: dict[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    stats: str | None = None
    sim: SimConfig = field(default_factory=SimConfig)

    def __post_init__(self) -> None:
        if not 0 < self.seconds < inf:
            raise ConfigError(f"an episode ends: {self.seconds=} must be positive and finite, 86400 is a day")
        if self.episodes < 1 or self.seed < 0 or not min(self.slow_ms, self.refresh_s) >= 0:
            raise ConfigError(f"episodes is positive, seed, slow_ms and refresh_s not negative: {self}")
        if self.hz is not None and not 0 < self.hz <= 1000:
            raise ConfigError(f"{self.hz=} must be in (0, 1000]")

    @property
    def rate(self) -> float:
        return self.hz or self.sim.control_hz
