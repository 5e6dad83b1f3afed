"""Between physical units and what a model reads, and the way back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tailorbird.errors import DataError, MissingStats

EPS = 1e-8  # lerobot's: what deviations are never divided by less than
ROUNDING = 1e-6  # relative: how far a float32 lies from the mean of many like it


class Scale(Protocol):
    """Of the values of a vector, each its own: `Normalizer`, `RangeNormalizer` and `Identity` are."""

    @property
    def width(self) -> int: ...

    def __call__(self, x: Tensor) -> Tensor:
        """(..., width) in physical units to normalised, fp32."""

    def inverse(self, x: Tensor) -> Tensor:
        """(..., width) normalised to physical units, fp32."""

    def moved(self, x: NDArray[np.float32]) -> tuple[int, float] | None:
        """The first index of x (width,) that leaves the one value of its statistics; and that value.

        In the data it never changed, or, where the statistics are quantiles, seldom.
        """


def _require(what: Mapping[str, Sequence[float]]) -> None:
    sizes = {name: len(values) for name, values in what.items()}
    if len(set(sizes.values())) > 1 or not all(sizes.values()):
        raise DataError(
            f"{' and '.join(f'{size} {name}' for name, size in sizes.items())} do not describe a vector"
        )
    if not np.isfinite(list(what.values())).all():
        raise DataError(
            f"cannot normalise with {', '.join(f'{name} {values}' for name, values in what.items())}: they "
            "must be finite. Compute the statistics of the dataset again"
        )


def take(
    stats: Mapping[str, Mapping[str, Any]], key: str, names: tuple[str, str], source: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Two statistics of one feature, as LeRobot's meta/stats.json has them.

    Raises:
        MissingStats: `source` has none for `key`. Passing data through unchanged would break the policy
            silently.
    """
    if key not in stats or not set(names) <= stats[key].keys():
        raise MissingStats(f"no {' and '.join(names)} for {key!r}: {source} holds {sorted(stats)}")
    first, second = (tuple(np.ravel(stats[key][name]).astype(float).tolist()) for name in names)
    return first, second


@dataclass(frozen=True, kw_only=True)
class Normalizer:
    """Zero mean and unit deviation."""

    names: ClassVar = ("mean", "std")
    mean: tuple[float, ...]
    std: tuple[float, ...]
    eps: float = EPS

    def __post_init__(self) -> None:
        _require({"means": self.mean, "deviations": self.std})
        if min(self.std) < 0:
            raise DataError(
                f"cannot normalise with mean {self.mean} and deviation {self.std}: they must be finite, the "
                "deviations not negative. Compute the statistics of the dataset again"
            )

    @classmethod
    def from_stats(cls, stats: Mapping[str, Mapping[str, Any]], key: str, source: str) -> "Normalizer":
        """Raises MissingStats: `source` has none for `key`."""
        mean, std = take(stats, key, cls.names, source)
        return cls(mean=mean, std=std)

    @property
    def width(self) -> int:
        return len(self.mean)

    def __call__(self, x: Tensor) -> Tensor:
        """(..., width) in physical units to normalised, fp32. A number that never changed becomes 0."""
        mean, std = _on(x, self.mean, self.std)
        return (x.float() - mean) / (std + self.eps)

    def inverse(self, x: Tensor) -> Tensor:
        """(..., width) normalised to physical units, fp32. A number that never changed stays what it was."""
        mean, std = _on(x, self.mean, self.std)
        return x.float() * std + mean

    def moved(self, x: NDArray[np.float32]) -> tuple[int, float] | None:
        return _moved(x, np.asarray(self.mean), np.asarray(self.std) == 0)


@dataclass(frozen=True, kw_only=True)
class RangeNormalizer:
    """From [low, high] to [-1, 1]: the extremes of the data, or quantiles of it."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    eps: float = EPS

    def __post_init__(self) -> None:
        _require({"lower": self.low, "upper limits": self.high})

    @property
    def width(self) -> int:
        return len(self.low)

    def __call__(self, x: Tensor) -> Tensor:
        """(..., width) in physical units to normalised, fp32. A number that never changed becomes -1."""
        low, span = self._span(x)
        return 2 * (x.float() - low) / span - 1

    def inverse(self, x: Tensor) -> Tensor:
        """(..., width) normalised to physical units, fp32. A number that never changed stays what it was."""
        low, span = self._span(x)
        return (x.float() + 1) / 2 * span + low

    def moved(self, x: NDArray[np.float32]) -> tuple[int, float] | None:
        low = np.asarray(self.low)
        return _moved(x, low, low == np.asarray(self.high))

    def _span(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low, high = _on(x, self.low, self.high)
        return low, torch.where(high == low, self.eps, high - low)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The model works in physical units."""

    width: int

    def __call__(self, x: Tensor) -> Tensor:
        return x.float()

    def inverse(self, x: Tensor) -> Tensor:
        return x.float()

    def moved(self, x: NDArray[np.float32]) -> None:
        return None


def _on(x: Tensor, *values: tuple[float, ...]) -> Sequence[Tensor]:
    return [torch.tensor(one, device=x.device) for one in values]


def _moved(
    x: NDArray[np.float32], usual: NDArray[np.float64], still: NDArray[np.bool_]
) -> tuple[int, float] | None:
    found = np.flatnonzero(still & (np.abs(x - usual) > ROUNDING * np.maximum(1, np.abs(usual))))
    return (int(found[0]), float(usual[found[0]])) if len(found) else None
