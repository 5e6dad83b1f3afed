"""Rows of a source that are never learned from, and the others."""

import math
from dataclasses import dataclass

from tailorbird.data.order import place_of, seed_of
from tailorbird.data.sample import Sample, Source
from tailorbird.errors import ConfigError, DataError

APART = 1 << 33  # tells this choice from the epochs of a part


@dataclass(frozen=True, kw_only=True)
class Share:
    """The rows of a source that a shuffle puts at [start, stop)."""

    whole: Source
    start: int
    stop: int
    key: int

    @property
    def name(self) -> str:
        return self.whole.name

    @property
    def fingerprint(self) -> str:
        return f"{self.whole.fingerprint}[{self.start}:{self.stop}:{self.key:x}]"

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, row: int) -> Sample:
        return self.whole[place_of(self.start + row, len(self.whole), self.key)]


def split(source: Source, held_out: float, most: int, seed: int) -> tuple[Share, Share]:
    """What is learned from, and the share that is only measured: at least one row, and at most `most`.

    Raises:
        ConfigError: the share is not between 0 and 1.
        DataError: the source has fewer than two rows.
    """
    if not 0 < held_out < 1:
        raise ConfigError(f"{held_out=} is a share between 0 and 1")
    num, key = len(source), seed_of(seed, APART)
    if num < 2:
        raise DataError(f"{source.name} has {num} rows: two are needed, one to learn from and one to measure")
    apart = min(max(1, math.floor(held_out * num)), most)
    return (
        Share(whole=source, start=apart, stop=num, key=key),
        Share(whole=source, start=0, stop=apart, key=key),
    )
