"""Settings of a training run. Importable without torch."""

from dataclasses import dataclass, replace
from typing import Literal

from tailorbird.errors import ConfigError

Learn = Literal["expert", "all_but_vision", "everything"]
Logger = Literal["tensorboard", "wandb", "trackio"]
Part = Literal["vision", "connector", "embeddings", "text", "expert"]
SMALL_TARGETS = ("state_in", "action_in", "action_out", "time_in", "time_out")
VLM_TARGETS = (  # every layer of the language model: what is usual with peft
    *(f"decoder.blocks.*.attn.{part}" for part in ("query", "key", "value", "out")),
    "decoder.blocks.*.mlp.*",
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how fast, how often.

    Attributes:
        final_lr: learning rate of the last step, as a share of `lr`; the way there is a cosine.
        decay_steps: the run that warm-up and cosine are meant for. A shorter run does both faster, a longer
            one stays at the final rate. 0: warm-up as it is, cosine to the last step.
        optimizer: adamw8bit keeps its two moments in 8 bits each (pip install 'tailorbird[train8]').
        precision: in which the network computes. The weights that learn are fp32 either way: with bfloat16
            a narrow copy of them computes, for 2 bytes more each.
        checkpointing: blocks are computed again in the backward pass instead of kept: slower, and much
            less memory.
        compile: the blocks, by torch.compile.
        parallel: what several processes do: with ddp each has all weights, with fsdp a share of them, of the
            gradients and of the moments. The run, and what it saves, is the same. One process does neither.
        ema: decay of the averaged weights that are evaluated and saved; 0 takes the last ones, and keeps no
            copy.
        spike: a loss of so many times the median of the last steps is taken for a fault, like one that is not
            finite; 0 takes none for it.
        skip_bad_steps: how many such steps of a run are left out and counted; one more stops it.
        log: where else than in metrics.jsonl figures go. tensorboard: files beside it, if it is installed.
            wandb: Weights and Biases, offline if WANDB_MODE=offline (pip install 'tailorbird[wandb]').
            trackio: its dashboard on this machine (pip install 'tailorbird[trackio]').
        device: cpu, cuda, cuda:1, ...; auto is the first GPU if there is one.
        threads: of PyTorch; 0 for all cores. Sums are split by it, so a repeated run needs the same.
        keep: checkpoints to keep, the newest ones.
        best: a figure of the evaluation, by whose best value one more checkpoint is kept.
        best_is: which value of it that is.
    """

    steps: int = 4000
    lr: float = 7e-4
    final_lr: float = 0.02
    warmup: int = 100
    decay_steps: int = 0
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    clip: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpointing: bool = False
    compile: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    ema: float = 0.995
    spike: float = 10.0
    skip_bad_steps: int = 0
    seed: int = 0
    log: tuple[Logger, ...] = ("tensorboard",)
    device: str = "cpu"
    threads: int = 0
    log_every: int = 20
    eval_every: int = 500
    save_every: int = 500
    keep: int = 2
    best: str = ""
    best_is: Literal["lowest", "highest"] = "lowest"

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "eval_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("seed", "threads", "warmup", "decay_steps", "skip_bad_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} cannot be negative")
        if not (self.lr > 0 and 0 <= self.ema < 1 and self.clip > 0):
            raise ConfigError(f"lr and clip must be positive, ema in [0, 1): {self}")
        if self.spike and self.spike <= 1:
            raise ConfigError(f"{self.spike=} takes every other step for a fault: above 1, or 0 for none")


def require_shardable(cfg: TrainConfig, *, updates: bool, is_policy: bool) -> None:
    """Raises ConfigError where `parallel` is fsdp and shards cannot learn so. updates: low-rank ones."""
    if cfg.parallel != "fsdp":
        return
    refused = {
        "low-rank updates, which are small": updates,
        "--train.optimizer adamw8bit": cfg.optimizer == "adamw8bit",
        "a policy in bfloat16, whose expert stays fp32": is_policy and cfg.precision != "float32",
        "compiled blocks": cfg.compile,
    }
    if found := [what for what, is_so in refused.items() if is_so]:
        raise ConfigError(f"--train.parallel fsdp cannot shard {', or '.join(found)}: choose ddp")


@dataclass(frozen=True, kw_only=True)
class VLATrainConfig(TrainConfig):
    """Of a policy.

    Attributes:
        batch: observations of a step.
        accumulate: they are computed in so many parts, for less memory; the gradient is the same.
        draws: noises per observation. The scene is read once for all of them, so they cost only the expert.
        max_delay: up to so many actions at a chunk's head are given, and the others learned as what follows.
            A robot's next chunk then goes on from what it is committed to, in any engine and at no cost. Take
            the longest delay to expect, in actions; 0 gives none to a policy that does not know them yet.
            Such policies are saved in Tailorbird's layout: lerobot has none.
        past_end: whether actions past the end of an episode are left out of the loss, or its last action is
            held and learned.
        held_out: share of the episodes that is never learned from, only measured.
    """

    batch: int = 32
    accumulate: int = 1
    draws: int = 2
    max_delay: int = 0
    past_end: Literal["left_out", "held"] = "left_out"
    held_out: float = 0.03

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch", "accumulate", "draws"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.batch % self.accumulate:
            raise ConfigError(f"a {self.batch=} does not fall into {self.accumulate=} parts of one size")
        if self.max_delay < 0:
            raise ConfigError(f"max_delay={self.max_delay} cannot be negative")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out={self.held_out} is a share between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class VLMTrainConfig(TrainConfig):
    """Of a vision-language model.

    Attributes:
        neftune: noise on the embedded words; 5 in the published recipes, 0 for none.
    """

    neftune: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neftune < 0:
            raise ConfigError(f"neftune={self.neftune} cannot be negative")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank updates, learned instead of the weights themselves and merged into them when saved.

    Attributes:
        rank: of each update; 0 learns the weights themselves.
        alpha: an update counts alpha / rank times.
        dropout: share of an update's inputs that a training step leaves out.
        dora: the length of each row of a weight learns apart from its direction (DoRA).
        targets: which linear layers, by name; * stands for anything. The rows of a joint projection qkv go by
            query, key and value. Default: what lerobot adapts.
        whole: which modules learn themselves beside the updates, by name: decoder.embed, connector.proj, ...
    """

    rank: int = 0
    alpha: float = 8.0
    dropout: float = 0.0
    dora: bool = False
    targets: tuple[str, ...] = ("expert.blocks.*.query", "expert.blocks.*.value", *SMALL_TARGETS)
    whole: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 0 or not (self.alpha > 0 and 0 <= self.dropout < 1):
            raise ConfigError(f"rank cannot be negative, alpha is positive, dropout in [0, 1): {self}")
        if not self.rank and (self.dora or self.whole):
            raise ConfigError(
                "dora and whole are of low-rank updates, of which there are none: set their rank"
            )
        if self.rank and not self.targets:
            raise ConfigError("low-rank updates need at least one layer to change: name one in targets")


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast a part of a model learns, and from when.

    Attributes:
        learns: whether it learns at all.
        rate: its learning rate is so many times that of the run.
        start: the step from which it learns. It is frozen until then; then its moments are empty, its rate
            warms up, and its average is short, as at the beginning of a run.
    """

    learns: bool = True
    rate: float = 1.0
    start: int = 0

    def __post_init__(self) -> None:
        if self.rate <= 0 or self.start < 0:
            raise ConfigError(
                f"rate must be positive (learns says what is frozen), start not negative: {self}"
            )


@dataclass(frozen=True, kw_only=True)
class LearnConfig:
    """Which weights learn, how fast, from when, and in which precision the others wait.

    Attributes:
        part: expert: the action expert and the projections of state, time and actions. all_but_vision: also
            the connector and the language model. everything: the image tower too.
        lora: learns low-rank updates instead; `part` does not count then.
        frozen_dtype: of the weights that do not learn. Those that learn are fp32: smaller steps than bf16 can
            hold would be lost.
        vision: the image tower.
        connector: the projection of its tokens to the width of the words.
        embeddings: the table of words, and the output head.
        text: the language model's blocks and last norm.
        expert: of a policy, the action expert and the projections of state, time and actions.
    """

    part: Learn = "everything"
    lora: LoraConfig = LoraConfig()
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"
    vision: Pace = Pace()
    connector: Pace = Pace()
    embeddings: Pace = Pace()
    text: Pace = Pace()
    expert: Pace = Pace()

    def __post_init__(self) -> None:
        if self.frozen_dtype == "bfloat16" and self.lora.rank and self.lora.whole:
            raise ConfigError(
                f"{self.lora.whole} learn in fp32, so the modules around them cannot be bfloat16: choose "
                "--learn.frozen-dtype float32, and --train.precision bfloat16 to compute in it"
            )
        if self.frozen_dtype == "bfloat16" and self.part != "expert" and not self.lora.rank:
            raise ConfigError(
                f"with {self.part=} parts of the VLM learn in fp32, so the rest of it cannot be bfloat16: "
                "choose --learn.frozen-dtype float32, or let only the expert learn"
            )

    def pace(self, part: Part) -> Pace:
        """Of a part. What `part` freezes does not learn."""
        said: Pace = getattr(self, part)
        allowed = {
            "expert": part == "expert",
            "all_but_vision": part != "vision",
            "everything": True,
        }
        return said if self.lora.rank or allowed[self.part] else replace(said, learns=False)
