"""Which sample is drawn when, from several sources: a pure function of (seed, draw number)."""

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tailorbird.data.config import WhenDry
from tailorbird.data.order import place_of, seed_of
from tailorbird.data.sample import Source
from tailorbird.errors import ConfigError

LONGEST_BLOCK = 100_000  # draws; no part may be less than one of them
CHOSEN = 1 << 32  # tells the choice of a part's rows from its epochs

# Shares of samples, in percent. Of SmolVLM's vision stage (256M and 500M) the 41 are documents, as its
# announcement says; the other two parts come without a name.
VISION_STAGE = {"pictures": 35.0, "documents": 41.0, "others": 24.0}
VIDEO_STAGE = {"image": 34.4, "video": 33.0, "text": 20.2, "multi-image": 12.3}  # SmolVLM2's model card


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """A source and how much of it.

    weight: of its draws, among those of the other parts.
    passes: after going through it so often it is dry: 0.5 is half of it, None once.
    most: use only so many of its rows, chosen by the seed; None for all.
    """

    source: Source
    weight: float = 1.0
    passes: float | None = None
    most: int | None = None

    @property
    def num_rows(self) -> int:
        return len(self.source) if self.most is None else min(self.most, len(self.source))


class Draw(NamedTuple):
    """source: its number. row: in the source. epoch: how often the source was gone through before."""

    source: int
    row: int
    epoch: int


class Phase(NamedTuple):
    """From one part running dry to the next: blocks of draws that all hold the same.

    start: its first draw. before: draws of each part before that. quotas: of each part in a block.
    """

    start: int
    before: tuple[int, ...]
    quotas: tuple[int, ...]


class Mixture:
    """Draws by number; each costs the same wherever it stands, and nothing is remembered between two.

    Draws come in blocks. In every one each part has the same number of draws, in an order drawn anew. Each
    epoch of a part goes through its rows in an order of its own.

    when_dry: what happens when a part has been gone through as often as it may. repeat: it may without end.
        drop: its draws go to the others, until all are dry. stop: the mixture ends.
    """

    def __init__(self, parts: Sequence[Part], *, when_dry: WhenDry = "repeat", seed: int = 0) -> None:
        _check(parts, when_dry)
        self.parts, self.when_dry, self.seed = tuple(parts), when_dry, seed
        self.names = tuple(part.source.name for part in parts)
        self._phases, self.length = self._plan()
        self._starts = [phase.start for phase in self._phases]

    @property
    def fingerprint(self) -> str:
        """Of everything that decides what is drawn when."""
        parts = [
            (one.source.name, one.source.fingerprint, len(one.source), one.weight, one.passes, one.most)
            for one in self.parts
        ]
        made_from = json.dumps([parts, self.when_dry, self.seed])
        return hashlib.sha256(made_from.encode()).hexdigest()[:16]

    def at(self, draw: int) -> Draw:
        """The draw of this number, from 0. Raises IndexError past `length`, which is None without an end."""
        if draw < 0 or (self.length is not None and draw >= self.length):
            raise IndexError(f"draw {draw} of {self.length}")
        number = bisect_right(self._starts, draw) - 1
        phase = self._phases[number]
        block, place = divmod(draw - phase.start, sum(phase.quotas))
        which, turn = block_of(phase.quotas, self.seed, number, block)
        source = int(which[place])
        nth = phase.before[source] + block * phase.quotas[source] + int(turn[place])
        part = self.parts[source]
        epoch, position = divmod(nth, part.num_rows)
        row = place_of(position, part.num_rows, _key(self.seed, source, epoch))
        if part.num_rows < len(part.source):
            row = place_of(row, len(part.source), _key(self.seed, source, CHOSEN))
        return Draw(source, row, epoch)

    def dry_after(self) -> dict[str, int]:
        """After how many draws there is nothing more of a part, by its name, while there is of others."""
        found: dict[str, int] = {}
        for phase in self._phases:
            for name, quota in zip(self.names, phase.quotas, strict=True):
                if not quota:
                    found.setdefault(name, phase.start)
        return found

    def _plan(self) -> tuple[list[Phase], int | None]:
        """All phases, and the number of draws in all of them."""
        start, before, phases = 0, [0] * len(self.parts), list[Phase]()
        if self.when_dry == "repeat":
            quotas = quotas_of([one.weight for one in self.parts], self.names)
            return [Phase(start, tuple(before), quotas)], None
        left = [math.floor((1 if one.passes is None else one.passes) * one.num_rows) for one in self.parts]
        if min(left) < 1:
            name = self.names[left.index(min(left))]
            raise ConfigError(f"nothing of {name} may be drawn: allow more passes, or leave it out")
        while any(left) and not (phases and self.when_dry == "stop"):
            weights = [one.weight if num else 0.0 for one, num in zip(self.parts, left, strict=True)]
            quotas = quotas_of(weights, self.names)
            phases.append(Phase(start, tuple(before), quotas))
            blocks = min(num // quota for num, quota in zip(left, quotas, strict=True) if quota)
            which, turn = block_of(quotas, self.seed, len(phases) - 1, blocks)
            rest = np.array([num - blocks * quota for num, quota in zip(left, quotas, strict=True)])
            end = int(np.argmax(turn >= rest[which]))  # the first draw of a part that is dry
            used = blocks * np.array(quotas) + np.bincount(which[:end], minlength=len(quotas))
            before = [num + more for num, more in zip(before, used.tolist(), strict=True)]
            left = [num - more for num, more in zip(left, used.tolist(), strict=True)]
            start += blocks * sum(quotas) + end
        return phases, start


def by_kind(shares: Mapping[str, float], sources: Mapping[str, Sequence[Source]]) -> list[Part]:
    """Parts for a published mix: each kind has its share, and in it each source as much as it has rows."""
    if shares.keys() != sources.keys() or not all(sources.values()):
        given = sorted(kind for kind, some in sources.items() if some)
        raise ConfigError(f"the mix has {sorted(shares)}, sources came for {given}: give some for each kind")
    return [
        Part(source=one, weight=share * len(one) / sum(map(len, sources[kind])))
        for kind, share in shares.items()
        for one in sources[kind]
    ]


def quotas_of(weights: Sequence[float], names: Sequence[str]) -> tuple[int, ...]:
    """Draws of each part in a block: the shortest block that holds the weights exactly, if there is one.

    Else the longest block allowed, and the largest remainders are rounded up.
    """
    total = sum(weights)
    shares = [Fraction(weight / total).limit_denominator(LONGEST_BLOCK) for weight in weights]
    block = math.lcm(*(share.denominator for share in shares))
    if sum(shares) == 1 and block <= LONGEST_BLOCK and np.count_nonzero(weights) == sum(map(bool, shares)):
        return tuple(int(share * block) for share in shares)
    exact = np.array(weights) / total * LONGEST_BLOCK
    quotas = np.floor(exact).astype(int)
    up = np.argsort(quotas - exact, kind="stable")[: LONGEST_BLOCK - quotas.sum()]
    quotas[up] += 1
    lost = [name for name, weight, quota in zip(names, weights, quotas, strict=True) if weight and not quota]
    if lost:
        raise ConfigError(
            f"the weight of {', '.join(lost)} is less than one draw in {LONGEST_BLOCK:,}: raise it, or leave "
            "the source out"
        )
    return tuple(quotas.tolist())


@lru_cache(maxsize=8)
def block_of(
    quotas: tuple[int, ...], seed: int, phase: int, number: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each draw of a block the part, and how many of that part come before it in the block."""
    which = np.repeat(np.arange(len(quotas)), quotas)
    which = np.random.default_rng([seed, phase, number]).permutation(which)
    turn = np.empty_like(which)
    turn[np.argsort(which, kind="stable")] = np.concatenate([np.arange(quota) for quota in quotas])
    return which, turn


@lru_cache(maxsize=1024)
def _key(seed: int, source: int, epoch: int) -> int:
    return seed_of(seed, source, epoch)


def _check(parts: Sequence[Part], when_dry: WhenDry) -> None:
    names = [part.source.name for part in parts]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"a mixture needs at least one source, and names that differ: got {names}")
    for part in parts:
        name, rows = part.source.name, len(part.source)
        if not 0 < part.weight < math.inf or (part.most is not None and part.most < 1):
            raise ConfigError(f"{name}: weight {part.weight} and most {part.most} must be positive")
        if rows < 1:
            raise ConfigError(f"{name} has no rows: leave it out, or check what it was read from")
        if when_dry == "repeat" and part.passes is not None:
            raise ConfigError(
                f"{name} may be gone through {part.passes} times, but when_dry is repeat, which never stops: "
                "choose drop or stop, or leave passes out"
            )
        if part.passes is not None and not 0 < part.passes < math.inf:
            raise ConfigError(f"{name}: passes {part.passes} must be positive")
