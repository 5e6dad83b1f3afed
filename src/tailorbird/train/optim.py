"""AdamW, its learning rate over time, and averaged weights."""

import math

import torch
from torch import nn

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
    """Linear warm-up, then a cosine from lr to lr * final_lr."""
    warm = min(1.0, (step + 1) / max(1, cfg.warmup))
    cosine = 0.5 * (1 + math.cos(math.pi * step / cfg.steps))
    return cfg.lr * warm * (cfg.final_lr + (1 - cfg.final_lr) * cosine)


@torch.no_grad()
def average(mean: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Move the averaged weights towards the model's.

    Early on the average is short, or it would remember the start.
    """
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(mean.parameters()), list(model.parameters()), 1 - decay)
