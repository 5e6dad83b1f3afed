"""Rows that are held out, and the others."""

import pytest
from conversing import Talks

from tailorbird.data.split import split
from tailorbird.errors import ConfigError, DataError


@pytest.mark.parametrize(("num", "share", "apart"), [(2, 0.01, 1), (50, 0.1, 5), (50, 0.9, 7)])
def test_each_row_is_in_exactly_one_of_both(num: int, share: float, apart: int) -> None:
    whole = Talks("talks", num)
    learned, held_out = split(whole, share, 7, seed=3)
    assert (len(learned), len(held_out)) == (num - apart, apart)
    names = [part[row].name for part in (learned, held_out) for row in range(len(part))]
    assert sorted(names) == sorted(whole[row].name for row in range(num))
    again, _ = split(whole, share, 7, seed=3)
    other, _ = split(whole, share, 7, seed=4)
    assert again.fingerprint == learned.fingerprint != other.fingerprint != held_out.fingerprint


def test_what_cannot_be_divided_is_refused() -> None:
    with pytest.raises(DataError, match="talks has 1 rows: two are needed"):
        split(Talks("talks", 1), 0.5, 7, seed=0)
    with pytest.raises(ConfigError, match="a share between 0 and 1"):
        split(Talks("talks", 9), 1.0, 7, seed=0)
