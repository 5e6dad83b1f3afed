"""Settings of a training run. Importable without torch."""

from dataclasses import dataclass
from typing import Literal

from tailorbird.errors import ConfigError

Learn = Literal["expert", "all_but_vision", "everything"]
SMALL_TARGETS = ("state_in", "action_in", "action_out", "time_in", "time_out")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how fast, how often.

    Attributes:
        draws: noises per observation. The scene is read once for all of them, so they cost only the expert.
        final_lr: learning rate of the last step, as a share of `lr`; the way there is a cosine.
        decay_steps: the run that warm-up and cosine are meant for. A shorter run does both faster, a longer
            one stays at the final rate. 0: warm-up as it is, cosine to the last step.
        ema: decay of the averaged weights that are evaluated and saved as the policy; 0 takes the last ones.
        max_delay: up to so many actions at a chunk's head are given, and the others learned as what follows.
            A robot's next chunk then goes on from what it is committed to, in any engine and at no cost. Take
            the longest delay to expect, in actions; 0 gives none to a policy that does not know them yet.
            Such policies are saved in Tailorbird's layout: lerobot has none.
        past_end: whether actions past the end of an episode are left out of the loss, or its last action is
            held and learned.
        held_out: share of the episodes that is never learned from, only measured.
        device: cpu, cuda, cuda:1, ...; auto is the first GPU if there is one.
        threads: of PyTorch; 0 for all cores. Sums are split by it, so a repeated run needs the same.
        keep: checkpoints to keep, the newest ones.
    """

    steps: int = 4000
    batch: int = 32
    draws: int = 2
    lr: float = 7e-4
    final_lr: float = 0.02
    warmup: int = 100
    decay_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.995
    max_delay: int = 0
    past_end: Literal["left_out", "held"] = "left_out"
    held_out: float = 0.03
    seed: int = 0
    device: str = "cpu"
    threads: int = 0
    log_every: int = 20
    eval_every: int = 500
    save_every: int = 500
    keep: int = 2

    def __post_init__(self) -> None:
        counts = ("steps", "batch", "draws", "log_every", "eval_every", "save_every", "keep")
        for name in counts:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if min(self.seed, self.threads, self.warmup, self.decay_steps, self.max_delay) < 0:
            raise ConfigError(f"seed, threads, warmup, decay_steps and max_delay cannot be negative: {self}")
        if not (self.lr > 0 and 0 <= self.ema < 1 and 0 < self.held_out < 1 and self.clip > 0):
            raise ConfigError(f"lr and clip must be positive, ema in [0, 1), held_out in (0, 1): {self}")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank updates, learned instead of the weights themselves and merged into them when saved.

    Attributes:
        rank: of each update; 0 learns the weights themselves.
        alpha: an update counts alpha / rank times.
        dropout: share of an update's inputs that a training step leaves out.
        targets: which linear layers, by name; * stands for anything. The rows of a joint projection qkv go by
            query, key and value. Default: what lerobot adapts.
    """

    rank: int = 0
    alpha: float = 8.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("expert.blocks.*.query", "expert.blocks.*.value", *SMALL_TARGETS)

    def __post_init__(self) -> None:
        if self.rank < 0 or not (self.alpha > 0 and 0 <= self.dropout < 1):
            raise ConfigError(f"rank cannot be negative, alpha is positive, dropout in [0, 1): {self}")
        if self.rank and not self.targets:
            raise ConfigError("low-rank updates need at least one layer to change: name one in targets")


@dataclass(frozen=True, kw_only=True)
class LearnConfig:
    """Which weights learn, and in which precision the others wait.

    Attributes:
        part: expert: the action expert and the projections of state, time and actions. all_but_vision: also
            the connector and the language model. everything: the image tower too.
        lora: learns low-rank updates instead; `part` does not count then.
        frozen_dtype: of the weights that do not learn. Those that learn are fp32: smaller steps than bf16 can
            hold would be lost.
    """

    part: Learn = "everything"
    lora: LoraConfig = LoraConfig()
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.frozen_dtype == "bfloat16" and self.part != "expert" and not self.lora.rank:
            raise ConfigError(
                f"with {self.part=} parts of the VLM learn in fp32, so the rest of it cannot be bfloat16: "
                "choose --learn.frozen-dtype float32, or let only the expert learn"
            )
