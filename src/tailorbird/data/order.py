"""Which rows make which batch: a pure function of seed and step, so that resuming needs one number."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def seed_of(*parts: int) -> int:
    """Mix whole numbers (a seed, a step) into one seed for a generator; near neighbours end up far apart."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


@lru_cache(maxsize=2)
def permutation(num: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of one epoch, (num,)."""
    return np.random.default_rng([seed, epoch]).permutation(num)


def batch_rows(num: int, batch: int, seed: int, step: int) -> NDArray[np.int64]:
    """Rows of the batch at a step, (batch,).

    Each epoch is shuffled anew; the few rows left over wait for the next.
    """
    per_epoch = num // batch
    epoch, position = divmod(step, per_epoch)
    return permutation(num, seed, epoch)[position * batch : (position + 1) * batch]
