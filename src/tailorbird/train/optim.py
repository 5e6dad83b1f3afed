"""AdamW, its learning rate over time, and averaged weights."""

import copy
import math

import torch
from torch import nn

from tailorbird.model.vla import VLA
from tailorbird.train.config import TrainConfig


def build_optimizer(model: nn.Module, cfg: TrainConfig) -> torch.optim.AdamW:
    """Matrices decay; biases, norms and other vectors do not."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": cfg.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, fused=True)


def lr_at(step: int, cfg: TrainConfig) -> float:
    """Linear warm-up, then a cosine from lr to lr * final_lr. With `decay_steps`, lerobot's schedule.

    The cosine begins at step 0: it has run a little when the warm-up ends.
    """
    end, warmup = cfg.steps, cfg.warmup
    if cfg.decay_steps:
        end = min(cfg.steps, cfg.decay_steps)
        warmup = int(cfg.warmup * (end / cfg.decay_steps))
    if step < warmup:
        return cfg.lr * (step + 1) / (warmup + 1)
    cosine = 0.5 * (1 + math.cos(math.pi * min(step, end) / end))
    return cfg.lr * (cfg.final_lr + (1 - cfg.final_lr) * cosine)


def start_average(model: VLA) -> VLA:
    """A copy of the model for its averaged weights. What is frozen it shares with the model."""
    shared = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, shared).requires_grad_(False).eval()


@torch.no_grad()
def average(mean: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Move the averaged weights towards the model's.

    Early on the average is short, or it would remember the start.
    """
    decay = min(decay, (1 + step) / (10 + step))
    pairs = zip(mean.parameters(), model.parameters(), strict=True)
    moving = [(old, new) for old, new in pairs if new.requires_grad]
    torch._foreach_lerp_([old for old, _ in moving], [new for _, new in moving], 1 - decay)
