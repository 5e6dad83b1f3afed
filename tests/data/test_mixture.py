"""What is drawn when."""

import math
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from tailorbird.data.mixture import (
    LONGEST_BLOCK,
    VIDEO_STAGE,
    VISION_STAGE,
    Mixture,
    Part,
    block_of,
    by_kind,
    quotas_of,
)
from tailorbird.data.sample import Sample
from tailorbird.errors import ConfigError


@dataclass(frozen=True)
class Numbers:
    """A source of so many rows that nobody reads."""

    name: str
    size: int
    fingerprint: str = "f"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, row: int) -> Sample:
        raise NotImplementedError


def part(name: str, size: int, weight: float = 1.0, **others: Any) -> Part:
    return Part(source=Numbers(name, size), weight=weight, **others)


MIX = (part("a", 7, 0.5), part("b", 30, 0.3), part("c", 11, 0.2))


def drawn(mixture: Mixture, num: int | None = None) -> list[tuple[int, int, int]]:
    return [tuple(mixture.at(draw)) for draw in range(mixture.length or 0 if num is None else num)]


def rows_of(draws: list[tuple[int, int, int]], source: int) -> list[tuple[int, int]]:
    return [(epoch, row) for one, row, epoch in draws if one == source]


def test_a_draw_is_the_same_whenever_it_is_asked_for() -> None:
    forward = drawn(Mixture(MIX, seed=3), 300)
    block_of.cache_clear()
    again = Mixture(MIX, seed=3)
    assert [tuple(again.at(draw)) for draw in reversed(range(300))] == forward[::-1]
    assert forward != drawn(Mixture(MIX, seed=4), 300)


@pytest.mark.parametrize("seed", range(5))
def test_every_block_holds_the_weights_exactly(seed: int) -> None:
    draws = drawn(Mixture(MIX, seed=seed), 400)
    blocks = [tuple(source for source, _, _ in draws[i : i + 10]) for i in range(0, 400, 10)]
    assert all(Counter(block) == {0: 5, 1: 3, 2: 2} for block in blocks)
    assert len(set(blocks)) > 30  # and each is in an order of its own


@pytest.mark.parametrize("seed", range(5))
def test_each_epoch_of_a_source_shows_every_row_once_in_another_order(seed: int) -> None:
    draws = drawn(Mixture(MIX, seed=seed), 1000)
    for source, one in enumerate(MIX):
        rows, size = rows_of(draws, source), one.num_rows
        epochs = [rows[i : i + size] for i in range(0, len(rows) - size + 1, size)]
        assert all(sorted(epoch) == [(i, row) for row in range(size)] for i, epoch in enumerate(epochs))
        orders = [tuple(row for _, row in epoch) for epoch in epochs]
        assert all(one != other for one, other in pairwise(orders))
        assert len(set(orders)) > 0.9 * len(orders) > 5


def test_a_draw_ten_million_away_costs_what_the_first_does() -> None:
    mixture = Mixture([part("a", 10**9, 34.4), part("b", 3, 0.01)])
    near = Mixture([part("a", 10**9, 34.4), part("b", 3, 0.01)]).at(10**7)
    assert mixture.at(10**7) == near
    assert block_of.cache_info().currsize <= 8  # the blocks between were not made
    assert mixture.at(10**15).epoch >= 10**5


def test_published_mixes_are_held_exactly() -> None:
    sources = {kind: [Numbers(kind, 1000)] for kind in VIDEO_STAGE}
    quotas = quotas_of([one.weight for one in by_kind(VIDEO_STAGE, sources)], list(VIDEO_STAGE))
    assert quotas == (344, 330, 202, 123)
    assert quotas_of(list(VISION_STAGE.values()), list(VISION_STAGE)) == (35, 41, 24)


def test_a_kind_has_its_share_however_many_sources_and_rows_it_has() -> None:
    sources = {"text": [Numbers("t", 10)], "image": [Numbers("i", 300), Numbers("j", 100)]}
    parts = by_kind({"text": 50.0, "image": 50.0}, sources)
    assert quotas_of([one.weight for one in parts], ["t", "i", "j"]) == (4, 3, 1)
    with pytest.raises(ConfigError, match=r"has \['image', 'text'\], sources came for \['text'\]"):
        by_kind({"text": 1.0, "image": 1.0}, {"text": sources["text"], "image": []})


def test_weights_that_no_block_holds_are_off_by_less_than_one_draw_in_a_long_one() -> None:
    weights = np.random.default_rng(0).random(17) + 0.01
    quotas = np.array(quotas_of(weights.tolist(), [str(i) for i in range(17)]))
    assert quotas.sum() == LONGEST_BLOCK
    assert np.abs(quotas - weights / weights.sum() * LONGEST_BLOCK).max() < 1


def test_a_weight_too_small_to_be_drawn_is_refused_not_forgotten() -> None:
    assert sum(quotas_of([1.0, 2e-5], ["a", "b"])) <= LONGEST_BLOCK
    with pytest.raises(ConfigError, match="the weight of b is less than one draw in 100,000"):
        quotas_of([1.0, 3e-6], ["a", "b"])


def test_the_share_of_a_block_is_the_weight_for_any_fractions() -> None:
    for weights in ([1, 1, 1], [0.1, 0.2, 0.7], [3], [2, 6], [1 / 3, 2 / 3], [0.344, 0.33, 0.202, 0.124]):
        quotas = quotas_of([float(one) for one in weights], [str(i) for i in range(len(weights))])
        assert math.gcd(*quotas) == 1  # the shortest
        shares = [Fraction(one, sum(quotas)) for one in quotas]
        assert [float(one) for one in shares] == pytest.approx([one / sum(weights) for one in weights])


def test_what_is_dry_gives_its_draws_to_the_others_until_all_are() -> None:
    parts = [part("a", 7, 0.5), part("b", 30, 0.3, passes=1.5), part("c", 11, 0.2, passes=2)]
    mixture = Mixture(parts, when_dry="drop", seed=1)
    assert mixture.length == 7 + 45 + 22
    draws = drawn(mixture)
    assert sorted(rows_of(draws, 0)) == [(0, row) for row in range(7)]
    assert sorted(rows_of(draws, 2)) == [(epoch, row) for epoch in (0, 1) for row in range(11)]
    half = rows_of(draws, 1)[30:]
    assert len({row for _, row in half}) == 15
    assert {epoch for epoch, _ in half} == {1}
    last = max(i for i, one in enumerate(draws) if one[0] == 0)
    before, after = Counter(one[0] for one in draws[: last + 1]), Counter(one[0] for one in draws[last + 1 :])
    assert before[0] / (last + 1) == pytest.approx(0.5, abs=0.15)
    assert after[0] == 0
    both = Counter(one[0] for one in draws[last + 1 : last + 31])  # while both others have some
    assert both == {1: 18, 2: 12}
    with pytest.raises(IndexError, match="draw 74 of 74"):
        mixture.at(74)


@pytest.mark.parametrize("seed", range(8))
def test_a_mixture_without_repeats_shows_everything_exactly_once(seed: int) -> None:
    sizes = np.random.default_rng(seed).integers(1, 60, 5).tolist()
    weights = np.random.default_rng(seed + 100).integers(1, 9, 5).tolist()
    parts = [part(str(i), size, weight) for i, (size, weight) in enumerate(zip(sizes, weights, strict=True))]
    draws = drawn(Mixture(parts, when_dry="drop", seed=seed))
    assert sorted(draws) == [(i, row, 0) for i, size in enumerate(sizes) for row in range(size)]


def test_it_is_known_beforehand_when_a_source_will_be_dry() -> None:
    mixture = Mixture([part("a", 7, 0.5), part("b", 30, 0.3), part("c", 11, 0.2)], when_dry="drop", seed=1)
    draws, dry = [one[0] for one in drawn(mixture)], mixture.dry_after()
    assert len(dry) == 2, "the third ends with the mixture"
    for name, start in dry.items():
        assert mixture.names.index(name) not in draws[start:]
        assert draws[:start].count(mixture.names.index(name)) == {"a": 7, "b": 30, "c": 11}[name]
    assert Mixture(MIX).dry_after() == {}


def test_a_mixture_can_stop_when_the_first_is_dry() -> None:
    mixture = Mixture([part("a", 7, 0.5), part("b", 30, 0.3)], when_dry="stop", seed=2)
    draws = drawn(mixture)
    assert len(rows_of(draws, 0)) == 7
    assert mixture.length is not None
    assert 7 <= mixture.length < 14


def test_only_so_many_rows_are_used_and_always_the_same() -> None:
    mixture = Mixture([part("a", 1000, most=13), part("b", 5, most=9)], seed=6)
    draws = drawn(mixture, 300)
    used = {row for _, row in rows_of(draws, 0)}
    assert len(used) == 13
    assert max(used) > 100  # not the first ones
    assert {row for _, row in rows_of(draws, 1)} == set(range(5))
    other = {row for _, row in rows_of(drawn(Mixture(mixture.parts, seed=7), 300), 0)}
    assert len(other) == 13
    assert other != used


def test_the_fingerprint_tells_apart_what_draws_differently() -> None:
    known = Mixture(MIX).fingerprint
    assert Mixture(MIX).fingerprint == known
    changed = [
        Mixture(MIX, seed=1),
        Mixture(MIX, when_dry="drop"),
        Mixture(MIX[:2]),
        Mixture([replace(MIX[0], weight=0.6), *MIX[1:]]),
        Mixture([replace(MIX[0], most=3), *MIX[1:]]),
        Mixture([replace(MIX[0], source=Numbers("a", 7, "other")), *MIX[1:]]),
        Mixture([replace(MIX[0], source=Numbers("a", 8)), *MIX[1:]]),
    ]
    assert len({known, *(one.fingerprint for one in changed)}) == 8


@pytest.mark.parametrize(
    ("parts", "options", "message"),
    [
        ([], {}, "at least one source"),
        ([part("a", 3), part("a", 4)], {}, "names that differ"),
        ([part("a", 3, 0.0)], {}, "weight 0.0 and most None must be positive"),
        ([part("a", 3, most=0)], {}, "most 0 must be positive"),
        ([part("a", 0)], {}, "a has no rows: leave it out"),
        ([part("a", 3, passes=2)], {}, "when_dry is repeat, which never stops: choose drop or stop"),
        ([part("a", 3, passes=-1)], {"when_dry": "drop"}, "passes -1 must be positive"),
        ([part("a", 3, passes=0.1)], {"when_dry": "drop"}, "nothing of a may be drawn: allow more passes"),
    ],
)
def test_what_cannot_be_mixed_is_refused(parts: Any, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Mixture(parts, **options)
