"""Key/value caches. A model takes one as an argument and asks it for the keys to attend to."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


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

    def __init__(self) -> None:
        self.layers: list[KV] = []

    @property
    def length(self) -> int:
        return self.layers[0].k.shape[2] if self.layers else 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> KV:
        if layer == len(self.layers):
            self.layers.append(KV(k, v))
        else:
            old = self.layers[layer]
            self.layers[layer] = KV(torch.cat([old.k, k], dim=2), torch.cat([old.v, v], dim=2))
        return self.layers[layer]


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
