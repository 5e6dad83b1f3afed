"""Low-rank updates of frozen linear layers. They are gone once a policy is saved: it has plain weights."""

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tailorbird.errors import ConfigError
from tailorbird.model.layers import SelfAttention
from tailorbird.train.config import LoraConfig


class Adapted(nn.Linear):
    """A linear layer with a low-rank update for each of some ranges of its rows.

    It keeps the names and the dtype of the layer's own weights; the updates are fp32.

    Source: LoRA, arXiv:2106.09685; checked by tests/train/test_lora.py.
    """

    def __init__(
        self, layer: nn.Linear, rows: Sequence[slice], cfg: LoraConfig, generator: torch.Generator
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.rows, self.scale, self.dropout = rows, cfg.alpha / cfg.rank, nn.Dropout(cfg.dropout)
        device, reach = layer.weight.device, 1 / math.sqrt(layer.in_features)
        down = torch.rand(len(rows), cfg.rank, layer.in_features, generator=generator)
        self.down = nn.Parameter(((2 * down - 1) * reach).to(device))  # (ranges, rank, in)
        num = sum(part.stop - part.start for part in rows)
        self.up = nn.Parameter(torch.zeros(num, cfg.rank, device=device))  # (rows of all ranges, rank)

    def updates(self) -> list[tuple[slice, Tensor, Tensor]]:
        """Of each range: its rows, down (rank, in), and up (rows, rank), scaled."""
        ups = self.up.split([part.stop - part.start for part in self.rows])
        return [
            (part, down, up * self.scale) for part, down, up in zip(self.rows, self.down, ups, strict=True)
        ]

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in). Returns (..., out), in the dtype of the frozen weight."""
        own = super().forward(x)
        y, x = own.float(), self.dropout(x.float())  # fp32: as the updates
        for rows, down, up in self.updates():
            change = F.linear(F.linear(x, down), up)  # (..., rows)
            y = y + F.pad(change, (rows.start, self.out_features - rows.stop))
        return y.to(own.dtype)

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The weight of the plain layer that computes the same, fp32."""
        weight = self.weight.to(torch.float32, copy=True)
        for rows, down, up in self.updates():
            weight[rows] += up @ down
        return weight


def adapt(model: nn.Module, cfg: LoraConfig, seed: int) -> None:
    """Freeze a model, and give the layers that `cfg.targets` names an update that is zero at first.

    Raises:
        ConfigError: a target names no linear layer.
    """
    model.requires_grad_(False)
    found = _ranges(model)
    rows: dict[str, list[slice]] = {}
    for target in cfg.targets:
        names = [name for name in found if fnmatchcase(name, target)]
        if not names:
            raise ConfigError(
                f"the target {target!r} of the low-rank updates names no layer; some that there are: "
                f"{', '.join(sorted(found)[:: max(1, len(found) // 8)])}"
            )
        for name in names:
            whole, part = found[name]
            if part not in rows.setdefault(whole, []):
                rows[whole].append(part)
    generator = torch.Generator().manual_seed(seed)
    for name, parts in rows.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        adapted = Adapted(layer, sorted(parts, key=lambda part: part.start), cfg, generator)
        model.set_submodule(name, adapted)


def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of the model without updates that computes the same, fp32 throughout."""
    weights = {name: value.float() for name, value in model.state_dict().items()}
    for name, module in model.named_modules():
        if isinstance(module, Adapted):
            weights[f"{name}.weight"] = module.merged()
            del weights[f"{name}.down"], weights[f"{name}.up"]
    return weights


def _ranges(model: nn.Module) -> dict[str, tuple[str, slice]]:
    """By name: a linear layer and those of its rows that the name stands for."""
    found: dict[str, tuple[str, slice]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            found[name] = (name, slice(0, module.out_features))
    for name, module in model.named_modules():
        if isinstance(module, SelfAttention):
            del found[f"{name}.qkv"]
            start = 0
            for part, heads in zip(("query", "key", "value"), module.splits, strict=True):
                stop = start + heads * module.head_dim
                found[f"{name}.{part}"] = (f"{name}.qkv", slice(start, stop))
                start = stop
    return found
