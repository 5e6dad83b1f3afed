"""Which weights of a model learn."""

import torch
from torch import nn

from tailorbird.model.vla import VLA
from tailorbird.train.config import Learn, LearnConfig
from tailorbird.train.lora import adapt


def choose(model: VLA, cfg: LearnConfig, seed: int) -> None:
    """Freeze what does not learn, and make what learns fp32, whatever it was.

    The language model's head never learns: acting does not read it.
    """
    if cfg.lora.rank:
        model.narrow(getattr(torch, cfg.frozen_dtype))
        adapt(model, cfg.lora, seed)
        return
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_learns(name, cfg.part))
    model.float()
    if cfg.frozen_dtype == "bfloat16":
        model.vlm.to(torch.bfloat16)


def _learns(name: str, part: Learn) -> bool:
    if name.startswith("vlm.head."):
        return False
    match part:
        case "expert":
            return not name.startswith("vlm.")
        case "all_but_vision":
            return not name.startswith("vlm.vision.")
        case "everything":
            return True


def count(model: nn.Module) -> dict[str, int]:
    """How many numbers learn, and how many do not."""
    sizes = {True: 0, False: 0}
    for parameter in model.parameters():
        sizes[parameter.requires_grad] += parameter.numel()
    return {"learned_parameters": sizes[True], "frozen_parameters": sizes[False]}
