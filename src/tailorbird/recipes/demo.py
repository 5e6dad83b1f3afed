"""The whole way at once: demonstrations, training, closed-loop runs, report."""

from dataclasses import dataclass, field

from tailorbird.data.config import RecordConfig
from tailorbird.errors import ConfigError
from tailorbird.evals.config import RolloutConfig
from tailorbird.recipes.run import RunConfig, tiny
from tailorbird.sim.config import SimConfig

DEMOS = {
    "button-press-topdown-v3": 120,
    "drawer-open-v3": 120,
    "door-close-v3": 120,
    "window-open-v3": 120,
    "push-v3": 240,  # the one that needs a grasp
}
WORLD = SimConfig(size=192)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Five Meta-World tasks, one policy for all, from pixels, proprioception and language.

    control_seeds: seeds per task of the runs that are expected to fail: untrained, wrong instruction, black
        pictures.
    """

    record: RecordConfig = field(default_factory=lambda: RecordConfig(demos=DEMOS, sim=WORLD))
    fit: RunConfig = field(default_factory=tiny)
    rollout: RolloutConfig = field(default_factory=lambda: RolloutConfig(tasks=tuple(DEMOS), sim=WORLD))
    control_seeds: int = 10

    def __post_init__(self) -> None:
        last = self.rollout.first_seed + max(self.rollout.seeds, self.control_seeds)
        if last > self.record.first_seed:
            raise ConfigError(
                f"rollouts on seeds below {last} would repeat recorded scenes: those begin at "
                f"{self.record.first_seed}"
            )
