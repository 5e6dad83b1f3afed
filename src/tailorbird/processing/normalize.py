"""Zero mean and unit deviation, and the way back to physical units."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tailorbird.errors import DataError, MissingStats


@dataclass(frozen=True, kw_only=True)
class Normalizer:
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise DataError(f"{len(self.mean)} means and {len(self.std)} deviations do not describe a vector")
        if not np.isfinite([*self.mean, *self.std]).all() or min(self.std) < 0:
            raise DataError(
                f"cannot normalise with mean {self.mean} and deviation {self.std}: they must be finite, the "
                "deviations not negative. Compute the statistics of the dataset again"
            )

    @classmethod
    def from_stats(cls, stats: Mapping[str, Mapping[str, Any]], key: str, source: str) -> "Normalizer":
        """Take the statistics of one feature, as LeRobot's meta/stats.json has them.

        Raises:
            MissingStats: `source` has none for `key`. Passing data through unchanged would break the policy
                silently.
        """
        if key not in stats or not {"mean", "std"} <= stats[key].keys():
            raise MissingStats(f"no mean and std for {key!r}: {source} holds {sorted(stats)}")
        mean, std = (tuple(np.ravel(stats[key][name]).astype(float).tolist()) for name in ("mean", "std"))
        return cls(mean=mean, std=std)

    @property
    def width(self) -> int:
        return len(self.mean)

    def __call__(self, x: Tensor) -> Tensor:
        """(..., width) in physical units to normalised, fp32. A number that never changed becomes 0."""
        mean, std = self._on(x.device)
        return (x.float() - mean) / torch.where(std > 0, std, 1.0)

    def inverse(self, x: Tensor) -> Tensor:
        """(..., width) normalised to physical units, fp32. A number that never changed stays what it was."""
        mean, std = self._on(x.device)
        return x.float() * std + mean

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.mean, device=device), torch.tensor(self.std, device=device)
