"""Statistics of a feature, as LeRobot keeps them: min, max, mean, std, count and five quantiles."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
Stats = dict[str, NDArray[np.float64]]


def describe(values: NDArray[np.generic]) -> Stats:
    """Statistics over the first axis of (T, ...), exact, in float64. `count` is (1,)."""
    x = np.asarray(values, np.float64)
    found = {"min": x.min(0), "max": x.max(0), "mean": x.mean(0), "std": x.std(0)}
    found |= {name: np.quantile(x, q, axis=0) for name, q in QUANTILES.items()}
    return {**{k: np.atleast_1d(v) for k, v in found.items()}, "count": np.array([len(x)])}


def describe_frames(frames: NDArray[np.uint8], most: int = 100) -> Stats:
    """Per channel over at most `most` frames spread over the episode, scaled to [0, 1], each (3, 1, 1).

    Exact, by counting the 256 values.

    Args:
        frames: (T, H, W, 3).
    """
    chosen = frames[np.linspace(0, len(frames) - 1, min(len(frames), most)).round().astype(int)]
    channels = [_describe_counts(np.bincount(chosen[..., c].ravel(), minlength=256)) for c in range(3)]
    found = {name: np.array([c[name] for c in channels]).reshape(3, 1, 1) / 255 for name in channels[0]}
    return {**found, "count": np.array([len(chosen)])}


def _describe_counts(counts: NDArray[np.int64]) -> dict[str, float]:
    """The same as `describe` for values 0, 1, 2, ... that occur so often."""
    values, total, upto = np.arange(len(counts)), counts.sum(), counts.cumsum()

    def quantile(q: float) -> float:
        place = q * (total - 1)  # between two values in ascending order, as NumPy's linear method has it
        low, high = np.searchsorted(upto, [np.floor(place), np.ceil(place)], side="right")
        return float(low + (high - low) * (place - np.floor(place)))

    mean = float((values * counts).sum() / total)
    present = np.flatnonzero(counts)
    return {
        "min": float(present[0]),
        "max": float(present[-1]),
        "mean": mean,
        "std": float(np.sqrt(((values - mean) ** 2 * counts).sum() / total)),
        **{name: quantile(q) for name, q in QUANTILES.items()},
    }


def merge(parts: Sequence[Mapping[str, NDArray[np.float64]]]) -> Stats:
    """Join statistics of disjoint data.

    Quantiles are averaged by count, as LeRobot does: an approximation.
    """
    counts = np.array([float(part["count"][0]) for part in parts])
    share = counts / counts.sum()

    def average(values: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        return np.tensordot(share, np.stack(values), axes=1)

    mean = average([part["mean"] for part in parts])
    variance = average([part["std"] ** 2 + (part["mean"] - mean) ** 2 for part in parts])
    names = [name for name in QUANTILES if all(name in part for part in parts)]  # converted sets lack them
    return {
        "min": np.min([part["min"] for part in parts], axis=0),
        "max": np.max([part["max"] for part in parts], axis=0),
        "mean": mean,
        "std": np.sqrt(variance),
        **{name: average([part[name] for part in parts]) for name in names},
        "count": np.array([int(counts.sum())]),
    }
