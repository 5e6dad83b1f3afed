"""Key/value caches. A model takes one as an argument and asks it for the keys to attend to."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from tailorbird.errors import ConfigError


class KV(NamedTuple):
    """One layer's keys and values, both (B, K, S, D), keys already rotated."""

    k: Tensor
    v: Tensor


class Cache(Protocol):
    @property
    def length(self) -> int:
        """Positions that are already there, the same for every layer between two calls of the model."""

    def append(self, layer: int, k: Tensor, v: Tensor) -> KV:
        """Take the new positions of one layer, return all that they may attend to, the new ones last."""


class DenseCache:
    """Grows by concatenation. Simple, exact, and what a prefix is collected in."""

    def __init__(self, layers: Sequence[KV] = ()) -> None:
        self.layers = list(layers)

    @property
    def length(self) -> int:
        return self.layers[0].k.shape[2] if self.layers else 0

    def since(self, length: int) -> list[KV]:
        """What came behind the first `length` positions, a layer each."""
        return [KV(k[:, :, length:], v[:, :, length:]) for k, v in self.layers]

    def append(self, layer: int, k: Tensor, v: Tensor) -> KV:
        if layer == len(self.layers):
            self.layers.append(KV(k, v))
        else:
            old = self.layers[layer]
            self.layers[layer] = KV(torch.cat([old.k, k], dim=2), torch.cat([old.v, v], dim=2))
        return self.layers[layer]


class StaticCache:
    """Takes the memory for `max_length` positions at once and writes in place: no copy as it grows.

    What it returns are views that the next append extends; bit for bit what a DenseCache returns.
    """

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self.layers: list[KV] = []  # (B, K, max_length, D) each
        self._filled: list[int] = []

    @property
    def length(self) -> int:
        return self._filled[0] if self._filled else 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> KV:
        if layer == len(self.layers):
            shape = (*k.shape[:2], self.max_length, k.shape[3])
            self.layers.append(KV(k.new_empty(shape), v.new_empty(shape)))
            self._filled.append(0)
        start, num_new = self._filled[layer], k.shape[2]
        end = start + num_new
        if end > self.max_length:
            raise ConfigError(
                f"a cache of max_length={self.max_length} positions holds {start} and cannot take {num_new} "
                "more: make it longer"
            )
        held = self.layers[layer]
        held.k[:, :, start:end] = k
        held.v[:, :, start:end] = v
        self._filled[layer] = end
        return KV(held.k[:, :, :end], held.v[:, :, :end])


class FrozenCache:
    """A finished prefix that readers extend without changing it: the action expert at each Euler step."""

    def __init__(self, layers: list[KV]) -> None:
        self.layers = layers

    @property
    def length(self) -> int:
        return self.layers[0].k.shape[2]

    def append(self, layer: int, k: Tensor, v: Tensor) -> KV:
        old = self.layers[layer]
        return KV(torch.cat([old.k, k], dim=2), torch.cat([old.v, v], dim=2))
