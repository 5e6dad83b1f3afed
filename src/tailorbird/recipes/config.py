"""Settings of whole runs. Importable without torch, so that `--help` is quick."""

from dataclasses import dataclass, field

from tailorbird.data.config import Augment
from tailorbird.data.record_config import RecordConfig
from tailorbird.errors import ConfigError
from tailorbird.evals.config import RolloutConfig
from tailorbird.model.config import VLAConfig
from tailorbird.model.sizes import TINY
from tailorbird.sim.config import SimConfig
from tailorbird.train.config import LearnConfig, VLATrainConfig, require_shardable


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Model, pictures and schedule. What the data decides (cameras, statistics, rate) is read from the data.

    Attributes:
        crop: top, left, height and width of the part of each frame that the model sees, as fractions.
        max_tokens: longest instruction that the policy accepts.
    """

    model: VLAConfig = TINY
    crop: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    max_tokens: int = 32
    augment: Augment = field(default_factory=Augment)
    train: VLATrainConfig = field(default_factory=VLATrainConfig)

    def __post_init__(self) -> None:
        require_shardable(self.train, updates=False, is_policy=True)


def tiny() -> RunConfig:
    """1.8 million parameters, from nothing, for a handful of simulated tasks; cut to the table of corner2.

    Attributes:
        Expect: what `demo` says, after seven minutes on two CPU cores.
    """
    return RunConfig(crop=(0.14, 0.306, 0.667, 0.667), train=VLATrainConfig(steps=4500))


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """What a policy that acts already learns anew. Everything else stays as the policy has it.

    Attributes:
        stats: whose mean, deviation and range of states and actions the policy works in from now on: dataset,
            policy for its own, or one of the sets that a policy of lerobot comes with. Its own keep what it
            knows in place, and suit data that resemble what it learned from.
        rename: the dataset's names of cameras to the policy's.
        without: cameras of the policy that the dataset does not have.
    """

    stats: str = "dataset"
    rename: dict[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    learn: LearnConfig = field(default_factory=LearnConfig)
    augment: Augment = field(default_factory=Augment)
    train: VLATrainConfig = field(default_factory=VLATrainConfig)

    def __post_init__(self) -> None:
        require_shardable(self.train, updates=bool(self.learn.lora.rank), is_policy=True)


def tune() -> TuneConfig:
    """One more task for a small policy, from a few dozen demonstrations: all weights learn, at a lower rate.

    Attributes:
        Expect: a task like those that it knows within minutes, and less success at those; of them
            `--stats policy` keeps more.
    """
    return TuneConfig(train=VLATrainConfig(steps=1500, lr=3e-4))


def smolvla() -> TuneConfig:
    """SmolVLA as lerobot fine-tunes it: the expert and the state's projection learn, the VLM is frozen.

    Attributes:
        Expect: lerobot's published 20 000 steps take about four hours on an A100.
    """
    train = VLATrainConfig(
        steps=20_000,
        batch=64,
        draws=1,
        lr=1e-4,
        final_lr=0.025,
        warmup=1000,
        decay_steps=30_000,
        weight_decay=1e-10,
        clip=10.0,
        ema=0.0,
        past_end="held",
        device="auto",
        log_every=100,
        eval_every=5000,
        save_every=5000,
    )
    return TuneConfig(learn=LearnConfig(part="expert"), train=train)


DEMOS = {
    "button-press-topdown-v3": 60,
    "drawer-open-v3": 90,
    "door-close-v3": 60,
    "window-open-v3": 110,
    "push-v3": 420,  # the one that needs a grasp
}
WORLD = SimConfig(size=192)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Five Meta-World tasks, one policy for all, from pixels, proprioception and language.

    Attributes:
        control_seeds: seeds per task of the runs that should fail: untrained, wrong instruction, black
            pictures.
    """

    record: RecordConfig = field(default_factory=lambda: RecordConfig(demos=DEMOS, sim=WORLD))
    fit: RunConfig = field(default_factory=tiny)
    rollout: RolloutConfig = field(default_factory=lambda: RolloutConfig(tasks=tuple(DEMOS), sim=WORLD))
    control_seeds: int = 10

    def __post_init__(self) -> None:
        if strangers := set(self.rollout.tasks) - set(self.record.demos):
            raise ConfigError(f"nothing is demonstrated for {sorted(strangers)}: add them to --record.demos")
        last = self.rollout.first_seed + max(self.rollout.seeds, self.control_seeds)
        if last > self.record.first_seed:
            raise ConfigError(
                f"rollouts on seeds below {last} would repeat recorded scenes: those begin at "
                f"{self.record.first_seed}"
            )
