"""Which rows make which batch."""

import numpy as np
import pytest

from tailorbird.data.order import batch_rows, permutation, place_of, seed_of


def test_the_rows_of_a_batch_depend_on_seed_and_step_alone() -> None:
    forward = [batch_rows(23, 4, 5, step).tolist() for step in range(12)]
    permutation.cache_clear()
    backward = [batch_rows(23, 4, 5, step).tolist() for step in reversed(range(12))]
    assert forward == backward[::-1]
    assert forward != [batch_rows(23, 4, 6, step).tolist() for step in range(12)]


def test_every_row_comes_once_an_epoch_and_each_epoch_in_another_order() -> None:
    epochs = [np.concatenate([batch_rows(24, 4, 0, 6 * e + i) for i in range(6)]) for e in range(3)]
    assert all(sorted(epoch) == list(range(24)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_rows_that_do_not_fill_a_batch_wait_for_the_next_epoch() -> None:
    seen = [row for step in range(5 * 40) for row in batch_rows(23, 4, 0, step)]
    per_epoch = [seen[start : start + 20] for start in range(0, len(seen), 20)]
    assert all(len(set(epoch)) == 20 for epoch in per_epoch)
    assert set(seen) == set(range(23))


def test_seeds_of_neighbours_are_far_apart_and_never_the_same() -> None:
    seeds = [seed_of(a, b) for a in range(40) for b in range(40)]
    assert len(set(seeds)) == 1600
    assert min(np.diff(np.sort(seeds))) > 2**40
    assert max(seeds) < 2**63
    assert seed_of(1, 2) == seed_of(1, 2) != seed_of(2, 1)


@pytest.mark.parametrize("num", [1, 2, 3, 5, 8, 30, 101, 1000])
def test_a_shuffle_that_is_not_laid_out_is_a_permutation_for_every_key(num: int) -> None:
    for key in range(12):
        assert sorted(place_of(i, num, key) for i in range(num)) == list(range(num))


def test_each_thing_goes_to_each_place_equally_often() -> None:
    num, keys = 6, 6000
    places = np.zeros((num, num))
    pairs = np.zeros((num, num))
    for key in range(keys):
        order = [place_of(i, num, seed_of(key)) for i in range(num)]
        places[np.arange(num), order] += 1
        pairs[order[:-1], order[1:]] += 1
    spread = (keys / num) ** 0.5
    assert np.abs(places - keys / num).max() < 4.5 * spread
    neighbours = pairs[~np.eye(num, dtype=bool)]
    assert np.abs(neighbours - keys / num).max() < 4.5 * spread


def test_neighbours_in_a_long_shuffle_have_nothing_to_do_with_each_other() -> None:
    num = 10**8
    order = np.array([place_of(i, num, 7) for i in range(4000)]) / num
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.06
    assert np.abs(np.histogram(order, 10, (0, 1))[0] - 400).max() < 4.5 * 19


def test_a_place_outside_is_refused() -> None:
    with pytest.raises(IndexError, match="4 is not one of 4"):
        place_of(4, 4, 0)
