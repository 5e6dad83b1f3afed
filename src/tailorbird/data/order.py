"""Which rows make which batch: a pure function of seed and step, so that resuming needs one number."""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8  # of the network in `place_of`; fewer leave patterns among the few
MASK = (1 << 64) - 1


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


def place_of(number: int, num: int, key: int) -> int:
    """Where one of `num` things goes in the shuffle of this key, without laying out the shuffle.

    It is a permutation of range(num) for every key; a data set of 10^8 rows costs no memory.

    Source: the generalised Feistel network FE2 with cycle walking, Black and Rogaway, "Ciphers with Arbitrary
    Finite Domains", 2002.
    """
    if not 0 <= number < num:
        raise IndexError(f"{number} is not one of {num}")
    wide = math.isqrt(num - 1) + 1 if num > 1 else 1
    deep = -(-num // wide)  # wide * deep is num or a little more
    while True:
        left, right = divmod(number, deep)
        for i in range(0, ROUNDS, 2):
            left = (left + _mixed(key, i, right)) % wide
            right = (right + _mixed(key, i + 1, left)) % deep
        number = left * deep + right
        if number < num:
            return number


def _mixed(key: int, i: int, value: int) -> int:
    """64 bits that depend on all three; the finaliser is that of SplitMix64."""
    bits = (key + 0x9E3779B97F4A7C15 * (i + 1) + 0xD1B54A32D192ED03 * value) & MASK
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & MASK
    return bits ^ (bits >> 31)
