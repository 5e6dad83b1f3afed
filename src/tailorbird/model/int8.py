"""A linear layer with int8 weights, to be exchanged for one of a model that knows nothing of it."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 127  # symmetric: -128 is not used, so that a weight and its negative are equally exact


def to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round each output channel to 255 levels of its own. weight: (out, in). Returns int8, and (out, 1)."""
    scale = weight.float().abs().amax(1, keepdim=True).clamp_min(1e-12) / LEVELS  # (out, 1)
    return (weight.float() / scale).round().to(torch.int8), scale


class Int8Linear(nn.Module):
    """Its weights are int8, its sums are those of the input's type.

    A compiler that sees the weights in this form may round inputs too, and multiply int8 by int8.
    """

    weight: Tensor  # (out, in), int8
    scale: Tensor  # (out, 1), fp32

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight, scale = to_int8(layer.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype) * self.scale.to(x.dtype)
        return F.linear(x, weight, self.bias)


def may_be_int8(name: str) -> bool:
    """Whether a VLA's layer of this name is where the arithmetic is, and not where the release is wider."""
    within = ("vlm.vision.blocks.", "vlm.connector.", "vlm.decoder.blocks.", "expert.blocks.")
    return name.startswith(within) and not name.endswith((".attn.key", ".attn.value"))


def shrink(model: nn.Module, names: Iterable[str]) -> None:
    """Exchange linear layers for int8 ones, one after the other: there is never a second copy of all.

    Raises:
        AttributeError, TypeError: the model has no such layer.
    """
    for name in names:
        layer = model.get_submodule(name)
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"{name} is no linear layer")
        model.set_submodule(name, Int8Linear(layer))


def is_int8(model: nn.Module) -> bool:
    return any(isinstance(module, Int8Linear) for module in model.modules())
