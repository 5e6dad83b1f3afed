"""Which weights of a model learn, how fast, and from which step."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import torch
from torch import nn

from tailorbird.errors import ConfigError
from tailorbird.model.vla import VLA
from tailorbird.train.config import LearnConfig, Pace, Part
from tailorbird.train.lora import adapt

PREFIXES: dict[Part, tuple[str, ...]] = {  # of names within a VLM; the first that fits counts
    "vision": ("vision.",),
    "connector": ("connector.",),
    "embeddings": ("decoder.embed.", "head."),
    "text": ("decoder.",),
}


@dataclass(frozen=True, kw_only=True)
class Group:
    """Weights that learn at one pace, by name."""

    parts: tuple[Part, ...]
    pace: Pace
    weights: Mapping[str, nn.Parameter]


def part_of(name: str) -> Part:
    """The part that a weight of a VLM or a VLA belongs to."""
    inner = name.removeprefix("vlm.")
    return next((part for part, prefixes in PREFIXES.items() if inner.startswith(prefixes)), "expert")


def choose(model: nn.Module, cfg: LearnConfig, seed: int) -> list[Group]:
    """Freeze what does not learn, make what learns fp32, whatever it was, and group it by its pace.

    The head of a policy's language model never learns: acting does not read it.

    Raises:
        ConfigError: nothing would learn from the first step on, or a pace is of a part that is not there.
    """
    if cfg.lora.rank:
        narrow(model, getattr(torch, cfg.frozen_dtype))
        adapt(model, cfg.lora, seed)
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not (isinstance(model, VLA) and name.startswith("vlm.head.")))
        model.float()
        if cfg.frozen_dtype == "bfloat16" and isinstance(model, VLA):
            model.vlm.to(torch.bfloat16)
    return _grouped(model, cfg)


def _grouped(model: nn.Module, cfg: LearnConfig) -> list[Group]:
    """What requires a gradient, by pace; what has none in `cfg` is frozen."""
    there = {part_of(name) for name, _ in model.named_parameters()}
    if strange := [part for part in get_args(Part) if part not in there and getattr(cfg, part) != Pace()]:
        raise ConfigError(
            f"the model has no {' and no '.join(strange)}, whose pace --learn sets: leave it out"
        )
    found: dict[Pace, dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        pace = cfg.pace(part_of(name))
        if parameter.requires_grad and pace.learns:
            found.setdefault(pace, {})[name] = parameter
        else:
            parameter.requires_grad_(False)
    groups = [
        Group(parts=tuple(dict.fromkeys(map(part_of, weights))), pace=pace, weights=weights)
        for pace, weights in found.items()
    ]
    if all(group.pace.start for group in groups):
        raise ConfigError(f"nothing learns at the first step: let a part of the model begin there, {cfg=}")
    return groups


def narrow(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert a model's weights, where a policy's are not fp32 whatever is asked."""
    if isinstance(model, VLA):
        model.narrow(dtype)
    else:
        model.to(dtype)


def enter(network: nn.Module, groups: Sequence[Group], step: int) -> None:
    """Let compute gradients, in the network that computes, for what learns at a step and for nothing else."""
    own = dict(network.named_parameters())
    for group in groups:
        for name in group.weights:
            own[name].requires_grad_(step >= group.pace.start)


def count(model: nn.Module, groups: Sequence[Group]) -> dict[str, int]:
    """How many numbers learn at some time, and how many never do."""
    learned = sum(parameter.numel() for group in groups for parameter in group.weights.values())
    total = sum(parameter.numel() for parameter in model.parameters())
    return {"learned_parameters": learned, "frozen_parameters": total - learned}


def settings_of(groups: Sequence[Group]) -> dict[str, Any]:
    """The paces that are not the usual one, as JSON."""
    return {part: asdict(group.pace) for group in groups if group.pace != Pace() for part in group.parts}
