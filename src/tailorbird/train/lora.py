"""Low-rank updates of frozen linear layers. They are gone once a model is saved: it has plain weights."""

import math
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tailorbird.checkpoint.peft import Adapter, Place, Update
from tailorbird.errors import CheckpointError, ConfigError
from tailorbird.model.layers import SelfAttention
from tailorbird.model.vision import VisionAttention
from tailorbird.train.config import LoraConfig

OWN = ("down", "up", "magnitude")  # what an adapted layer has beside the weights of the layer


class Adapted(nn.Linear):
    """A linear layer with a low-rank update for each of some ranges of its rows.

    It keeps the names and the dtype of the layer's own weights; the updates are fp32. With DoRA a row points
    where its weight and its update together do, and is as long as `magnitude` says.

    Source: LoRA, arXiv:2106.09685, and DoRA, arXiv:2402.09353, whose lengths have no gradient through the
    norms; checked by tests/train/test_lora.py and, against peft, by tests/parity/test_peft.py.
    """

    def __init__(
        self, layer: nn.Linear, places: Iterable[Place], cfg: LoraConfig, generator: torch.Generator
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias, self.cfg = layer.weight, layer.bias, cfg
        self.rows = [slice(start, stop) for start, stop in sorted(place[1:] for place in places)]
        self.nums = [part.stop - part.start for part in self.rows]
        self.scale, self.dropout = cfg.alpha / cfg.rank, nn.Dropout(cfg.dropout)
        device, reach = layer.weight.device, 1 / math.sqrt(layer.in_features)
        down = torch.rand(len(self.rows), cfg.rank, layer.in_features, generator=generator)
        self.down = nn.Parameter(((2 * down - 1) * reach).to(device))  # (ranges, rank, in)
        self.up = nn.Parameter(torch.zeros(sum(self.nums), cfg.rank, device=device))  # (rows, rank)
        self.register_parameter("magnitude", None)
        if cfg.dora:
            lengths = torch.cat([self.weight.detach()[part].float().norm(dim=1) for part in self.rows])
            self.magnitude = nn.Parameter(lengths)  # (rows of all ranges,)
        self.train(layer.training)

    def widen(self) -> None:
        """Make the updates fp32 again, in which they compute, where all of a model was converted."""
        for name in OWN:
            if (value := getattr(self, name)) is not None:
                value.data = value.data.float()

    def updates(self) -> list[tuple[slice, Tensor, Tensor, Tensor | None]]:
        """Of each range: its rows, down (rank, in), up (rows, rank), scaled, and gains (rows,) with DoRA."""
        ups = (self.up * self.scale).split(self.nums)
        parts = zip(self.rows, self.down, ups, self._magnitudes(), strict=True)
        return [
            (part, down, up, None if length is None else length / self._norms(part, down, up))
            for part, down, up, length in parts
        ]

    def _magnitudes(self) -> Iterable[Tensor | None]:
        return [None] * len(self.rows) if self.magnitude is None else self.magnitude.split(self.nums)

    @torch.no_grad()
    def _norms(self, part: slice, down: Tensor, up: Tensor) -> Tensor:
        """Lengths of the updated rows, (rows,); a row of zeros counts as a tiny one, and stays zero."""
        norms = (self.weight[part].float() + up @ down).norm(dim=1)
        return norms.clamp_min(torch.finfo(norms.dtype).tiny)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in). Returns (..., out), in the dtype of the frozen weight."""
        own = super().forward(x)
        y, x = own.float(), self.dropout(x.float())  # fp32: as the updates
        plain = None if self.magnitude is None else self._unbiased(y, x)
        for rows, down, up, gain in self.updates():
            change = F.linear(F.linear(x, down), up)  # (..., rows)
            if gain is not None and plain is not None:
                change = gain * change + (gain - 1) * plain[..., rows]
            y = y + F.pad(change, (rows.start, self.out_features - rows.stop))
        return y.to(own.dtype)

    def _unbiased(self, y: Tensor, x: Tensor) -> Tensor:
        """What the frozen weight alone makes of the inputs that the update sees, fp32."""
        if self.training and self.cfg.dropout:
            return F.linear(x.to(self.weight.dtype), self.weight).float()
        return y if self.bias is None else y - self.bias.float()

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The weight of the plain layer that computes the same, fp32."""
        weight = self.weight.to(torch.float32, copy=True)
        for rows, down, up, gain in self.updates():
            weight[rows] += up @ down
            if gain is not None:
                weight[rows] *= gain[:, None]
        return weight

    def plain(self) -> nn.Linear:
        """The layer that computes the same, in the dtype of the frozen weight."""
        layer = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        layer.weight = nn.Parameter(self.merged().to(self.weight.dtype), requires_grad=False)
        layer.bias = self.bias
        return layer.train(self.training)

    def parts(self) -> list[Update]:
        """The updates of the ranges, copied to the CPU."""
        own = zip(self.down, self.up.split(self.nums), self._magnitudes(), strict=True)
        return [
            Update(down=_copy(down), up=_copy(up), magnitude=None if length is None else _copy(length))
            for down, up, length in own
        ]


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", torch.float32, copy=True)


def adapt(model: nn.Module, cfg: LoraConfig, seed: int) -> None:
    """Freeze a model but for `cfg.whole`, and give the layers of `cfg.targets` updates, zero at first.

    Raises:
        ConfigError: a target names no linear layer, `whole` no module, or both the same.
    """
    model.requires_grad_(False)
    found = _places(model)
    places = [found[name] for target in cfg.targets for name in _named(target, found, "layer")]
    own = {name: one for name, one in model.named_modules() if list(one.parameters(recurse=False))}
    whole = {name for pattern in cfg.whole for name in _named(pattern, own, "module")}
    if both := whole & {place.layer for place in places}:
        raise ConfigError(
            f"{min(both)} would learn whole and get a low-rank update: leave out one of the two"
        )
    for name in whole:
        own[name].requires_grad_(True)
    _install(model, dict.fromkeys(places), cfg, seed)


def _named(pattern: str, found: Collection[str], kind: str) -> list[str]:
    names = [name for name in found if fnmatchcase(name, pattern)]
    if not names:
        raise ConfigError(
            f"{pattern!r} in the settings of the low-rank updates names no {kind}; some that there are: "
            f"{', '.join(sorted(found)[:: max(1, len(found) // 8)])}"
        )
    return names


def _install(model: nn.Module, places: Iterable[Place], cfg: LoraConfig, seed: int) -> None:
    by_layer: dict[str, list[Place]] = {}
    for place in places:
        by_layer.setdefault(place.layer, []).append(place)
    generator = torch.Generator().manual_seed(seed)
    for name, parts in by_layer.items():
        model.set_submodule(name, Adapted(_layer(model, name), parts, cfg, generator))


def adapted_layers(model: nn.Module) -> dict[str, Adapted]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Adapted)}


def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of the model without updates that computes the same, fp32 throughout."""
    weights = {name: value.float() for name, value in model.state_dict().items()}
    for name, module in adapted_layers(model).items():
        weights[f"{name}.weight"] = module.merged()
        for own in OWN:
            weights.pop(f"{name}.{own}", None)
    return weights


def merge(model: nn.Module) -> dict[str, Adapted]:
    """Put plain layers that compute the same in the places of the adapted ones.

    Returns what was there, with the weights as they were: `unmerge` puts it back.
    """
    taken = adapted_layers(model)
    for name, module in taken.items():
        model.set_submodule(name, module.plain())
    return taken


def unmerge(model: nn.Module, taken: dict[str, Adapted]) -> None:
    for name, module in taken.items():
        model.set_submodule(name, module.train(_layer(model, name).training))


def adapter_of(model: nn.Module, learned: Collection[str]) -> Adapter | None:
    """The updates of a model, copied to the CPU, and whatever else of its weights learned; None without any.

    learned: names of weights that learned, those of the updates or not.
    """
    layers = adapted_layers(model)
    if not layers:
        return None
    updates = {
        Place(name, part.start, part.stop): update
        for name, layer in layers.items()
        for part, update in zip(layer.rows, layer.parts(), strict=True)
    }
    own = {f"{name}.{part}" for name in layers for part in OWN}
    whole = {
        name: _copy(value) for name, value in model.named_parameters() if name in learned and name not in own
    }
    cfg = next(iter(layers.values())).cfg
    return Adapter(rank=cfg.rank, alpha=cfg.alpha, dropout=cfg.dropout, updates=updates, whole=whole)


@torch.no_grad()
def attach(model: nn.Module, adapter: Adapter) -> None:
    """Freeze a model but for an adapter, and let it compute with that.

    `adapter.whole` takes the places of weights, which are gone then; updates leave the weights as they are.

    Raises:
        CheckpointError: the adapter belongs to a model of another size; nothing was changed.
        ConfigError: the model has low-rank updates already.
    """
    if adapted_layers(model):
        raise ConfigError("the model has low-rank updates already: merge them first")
    weights, places = dict(model.named_parameters()), set(_places(model).values())
    wrong = [
        place.layer
        for place, update in adapter.updates.items()
        if place not in places or update.down.shape[1] != _layer(model, place.layer).in_features
    ]
    wrong += [
        name for name, one in adapter.whole.items() if name not in weights or weights[name].shape != one.shape
    ]
    if wrong:
        raise CheckpointError(
            f"the adapter changes {len(wrong)} weights that the model has not, or not of that size, first: "
            f"{wrong[0]}. It belongs to another model: attach it to the one that it was made from"
        )
    model.requires_grad_(False)
    for name, value in adapter.whole.items():
        weights[name].copy_(value)
        weights[name].requires_grad_(True)
    cfg = LoraConfig(rank=adapter.rank, alpha=adapter.alpha, dropout=adapter.dropout, dora=adapter.dora)
    _install(model, adapter.updates, cfg, seed=0)
    for name, layer in adapted_layers(model).items():
        updates = [adapter.updates[Place(name, part.start, part.stop)] for part in layer.rows]
        layer.down.copy_(torch.stack([one.down for one in updates]))
        layer.up.copy_(torch.cat([one.up for one in updates]))
        if layer.magnitude is not None:
            layer.magnitude.copy_(torch.cat([one.magnitude for one in updates if one.magnitude is not None]))


def _layer(model: nn.Module, name: str) -> nn.Linear:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


def _places(model: nn.Module) -> dict[str, Place]:
    """By name: a linear layer and those of its rows that the name stands for."""
    found: dict[str, Place] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            found[name] = Place(name, 0, module.out_features)
    for name, module in model.named_modules():
        if isinstance(module, SelfAttention | VisionAttention):
            del found[f"{name}.qkv"]
            start = 0
            for part, num in zip(("query", "key", "value"), _heads(module), strict=True):
                found[f"{name}.{part}"] = Place(f"{name}.qkv", start, start + num)
                start += num
    return found


def _heads(attention: SelfAttention | VisionAttention) -> list[int]:
    """How many rows of a joint projection are queries, keys and values."""
    if isinstance(attention, SelfAttention):
        return [heads * attention.head_dim for heads in attention.splits]
    return [attention.qkv.out_features // 3] * 3
