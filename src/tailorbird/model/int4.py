"""A linear layer with int4 weights, exchanged for a float one as the int8 one is."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUP = 64  # neighbouring input channels that share a scale
LOWEST = -8


def to_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round each group to 16 levels of its own; its largest weight becomes the lowest, -8, with either sign.

    weight: (out, in). Returns int8 from -8 to 7, (out, in / GROUP, GROUP), and scales (out, in / GROUP, 1).
    """
    parts = weight.float().unflatten(1, (-1, GROUP))  # (out, groups, GROUP)
    largest = parts.gather(2, parts.abs().argmax(2, keepdim=True))  # (out, groups, 1)
    scale = torch.where(largest == 0, 1.0, largest / LOWEST)
    return (parts / scale).round().clamp(LOWEST, -LOWEST - 1).to(torch.int8), scale


class Int4Linear(nn.Module):
    """Its weights have 16 levels. They are held as int8 here, two in a byte where they are compiled."""

    weight: Tensor  # (out, groups, GROUP), int8
    scale: Tensor  # (out, groups, 1), fp32

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.shape = tuple(layer.weight.shape)
        weight, scale = to_int4(layer.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype) * self.scale.to(x.dtype)  # (out, groups, GROUP)
        return F.linear(x, weight.reshape(self.shape), self.bias)
