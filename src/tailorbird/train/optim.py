"""AdamW, its learning rate over time, and averaged weights."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tailorbird.errors import ConfigError
from tailorbird.train.config import Pace, TrainConfig
from tailorbird.train.parallel import like, local
from tailorbird.train.stages import Group

M = TypeVar("M", bound=nn.Module)
MOMENTS = ("exp_avg", "exp_avg_sq")  # the first has a sign


def build_optimizer(groups: Sequence[Group], cfg: TrainConfig) -> torch.optim.Optimizer:
    """Matrices decay; biases, norms and other vectors do not.

    What learns from a later step on is there from the beginning, without a gradient and so without moments.
    """
    parts: list[dict[str, Any]] = []
    for group in groups:
        weights = group.weights.values()
        for decay, params in (
            (cfg.weight_decay, [one for one in weights if one.ndim >= 2]),
            (0.0, [one for one in weights if one.ndim < 2]),
        ):
            if params:
                parts.append({"params": params, "weight_decay": decay, "pace": group.pace})
    if cfg.optimizer == "adamw8bit":
        return _import_torchao().AdamW8bit(parts, lr=cfg.lr, betas=cfg.betas)
    return torch.optim.AdamW(parts, lr=cfg.lr, betas=cfg.betas, fused=True)


def _import_torchao() -> Any:
    try:
        from torchao import optim
    except ImportError:
        raise ConfigError(
            "--train.optimizer adamw8bit needs torchao: pip install 'tailorbird[train8]', or choose adamw"
        ) from None
    return optim


def set_rates(optimizer: torch.optim.Optimizer, step: int, cfg: TrainConfig) -> None:
    for group in optimizer.param_groups:
        rate = lr_of(group["pace"], step, cfg)
        if isinstance(group["lr"], Tensor):  # torchao compiles its step for a tensor
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def lr_of(pace: Pace, step: int, cfg: TrainConfig) -> float:
    """The learning rate at a step of weights that learn at a pace. What begins late warms up too."""
    late = min(1.0, (step - pace.start + 1) / (cfg.warmup + 1)) if pace.start else 1.0
    return lr_at(step, cfg) * pace.rate * max(late, 0.0)


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


def slots_of(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """What an optimizer remembers of a weight, by name, as plain tensors; empty before its first gradient."""
    found: dict[str, Tensor] = {}
    for slot, value in optimizer.state.get(parameter, {}).items():
        if hasattr(value, "codes"):  # 8 bits, with a scale for each block of numbers
            found |= {f"{slot}:codes": value.codes, f"{slot}:scale": value.scale}
        else:
            found[slot] = value
    return found


def put_slots(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, slots: Mapping[str, Tensor]) -> None:
    """Give an optimizer back what `slots_of` took. Raises KeyError where something is missing."""
    state: dict[str, Tensor] = {"step": slots["step"].to(parameter.device, copy=True)}
    for slot in MOMENTS:
        if f"{slot}:codes" in slots:
            codes, scale = slots[f"{slot}:codes"], slots[f"{slot}:scale"]
            signed, block = slot == MOMENTS[0], codes.numel() // scale.numel()
            state[slot] = _import_torchao().subclass_8bit.OptimState8bit.zeros(
                parameter.shape, signed, block, parameter.device, parameter.dtype
            )
            state[slot].codes.copy_(codes)  # type: ignore[attr-defined]
            state[slot].scale.copy_(scale)  # type: ignore[attr-defined]
        else:  # in the memory layout of the weight: the fused step relies on it
            state[slot] = torch.empty_like(parameter, requires_grad=False).copy_(like(slots[slot], parameter))
    if isinstance(optimizer.param_groups[0]["lr"], Tensor):
        state["step"] = slots["step"].clone()  # torchao counts on the CPU
    optimizer.state[parameter] = state


def start_average(model: M, groups: Sequence[Group]) -> M:
    """A copy of the model for its averaged weights. What never learns it shares with the model."""
    learned = {id(parameter) for group in groups for parameter in group.weights.values()}
    shared = {id(one): one for one in model.parameters() if id(one) not in learned}
    return copy.deepcopy(model, shared).requires_grad_(False).eval()


@torch.no_grad()
def average(mean: nn.Module, groups: Sequence[Group], step: int, decay: float) -> None:
    """Move the averaged weights towards those that learn.

    Early on the average is short, or it would remember the start.
    """
    means = dict(mean.named_parameters())
    for group in groups:
        age = step - group.pace.start
        if age >= 0:
            share = 1 - min(decay, (1 + age) / (10 + age))
            targets = [local(means[name]) for name in group.weights]
            torch._foreach_lerp_(targets, [local(one) for one in group.weights.values()], share)
