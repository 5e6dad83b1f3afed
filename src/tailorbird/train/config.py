"""Settings of a training run."""

from dataclasses import dataclass

from tailorbird.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how fast, how often.

    Attributes:
        draws: noises per observation. The scene is read once for all of them, so they cost only the expert.
        final_lr: learning rate of the last step, as a share of `lr`; the way there is a cosine.
        ema: decay of the averaged weights that are evaluated and saved as the policy.
        held_out: share of the episodes that is never learned from, only measured.
        threads: of PyTorch; 0 for all cores. Sums are split by it, so a repeated run needs the same.
        keep: checkpoints to keep, the newest ones.
    """

    steps: int = 4000
    batch: int = 32
    draws: int = 2
    lr: float = 7e-4
    final_lr: float = 0.02
    warmup: int = 100
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.995
    held_out: float = 0.03
    seed: int = 0
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
        if min(self.seed, self.threads, self.warmup) < 0:
            raise ConfigError(f"seed, threads and warmup cannot be negative: {self}")
        if not (self.lr > 0 and 0 <= self.ema < 1 and 0 < self.held_out < 1 and self.clip > 0):
            raise ConfigError(f"lr and clip must be positive, ema in [0, 1), held_out in (0, 1): {self}")
