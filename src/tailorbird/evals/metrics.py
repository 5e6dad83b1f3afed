"""Numbers with their uncertainty."""

import math
from collections.abc import Sequence

import numpy as np


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a success rate, 95 % by default.

    It stays inside [0, 1] and is honest at 0 and 1.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes in {trials} trials")
    p, n = successes / trials, trials
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 and the largest."""
    p50, p90, p99, most = np.percentile(values, [50, 90, 99, 100]).tolist()
    return {"p50": p50, "p90": p90, "p99": p99, "max": most}
