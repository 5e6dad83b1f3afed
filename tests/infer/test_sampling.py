"""Every step from logits to a token is that of transformers, value for value."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tailorbird.errors import ConfigError
from tailorbird.infer.config import Sampling
from tailorbird.infer.sampling import Sampler, keep_top_k, keep_top_p, mark, penalise, warp

SHAPE = (5, 97)


def continuous(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) * 4


def tied(seed: int) -> Tensor:
    """Few different values, so that many equal the threshold."""
    return torch.randint(-3, 4, SHAPE, generator=torch.Generator().manual_seed(seed)).float()


LOGITS = pytest.mark.parametrize("logits", [continuous(0), continuous(1), tied(0), tied(1)])


@LOGITS
@pytest.mark.parametrize("penalty", [0.7, 1.3, 2.0])
def test_the_repetition_penalty_is_that_of_the_reference(logits: Tensor, penalty: float) -> None:
    ids = torch.randint(97, (5, 40), generator=torch.Generator().manual_seed(2))
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    seen = mark(ids, torch.ones_like(ids, dtype=torch.bool), 97)
    assert torch.equal(penalise(logits, seen, penalty), expected)


@LOGITS
@pytest.mark.parametrize("k", [1, 2, 17, 96, 97, 500])
def test_top_k_is_that_of_the_reference(logits: Tensor, k: int) -> None:
    assert torch.equal(keep_top_k(logits, k), TopKLogitsWarper(k)(None, logits))


@LOGITS
@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.9, 0.999])
def test_top_p_is_that_of_the_reference(logits: Tensor, p: float) -> None:
    assert torch.equal(keep_top_p(logits, p), TopPLogitsWarper(p)(None, logits))


@LOGITS
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.6),
        Sampling(temperature=1.7, top_k=9),
        Sampling(temperature=0.3, top_p=0.8),
        Sampling(temperature=1.0, top_k=20, top_p=0.6),
    ],
)
def test_temperature_top_k_and_top_p_follow_each_other_as_in_the_reference(
    logits: Tensor, sampling: Sampling
) -> None:
    expected = TemperatureLogitsWarper(sampling.temperature)(None, logits)
    if sampling.top_k:
        expected = TopKLogitsWarper(sampling.top_k)(None, expected)
    if sampling.top_p < 1:
        expected = TopPLogitsWarper(sampling.top_p)(None, expected)
    assert torch.equal(warp(logits, sampling), expected)


def test_padding_counts_as_seen_only_where_a_row_says_it() -> None:
    ids, valid = torch.tensor([[0, 0, 3], [0, 4, 0]]), torch.tensor([[0, 0, 1], [0, 1, 1]]).bool()
    assert [row.nonzero().flatten().tolist() for row in mark(ids, valid, 6)] == [[3], [0, 4]]


def none_seen(rows: int = 5) -> Tensor:
    return torch.zeros(rows, 97, dtype=torch.bool)


@LOGITS
def test_without_temperature_the_first_of_the_likeliest_is_taken(logits: Tensor) -> None:
    assert torch.equal(Sampler(Sampling(top_k=3, top_p=0.2), none_seen())(logits), logits.argmax(-1))


def test_what_was_chosen_is_penalised_from_then_on() -> None:
    sampler = Sampler(Sampling(repetition_penalty=2.0), torch.zeros(1, 3, dtype=torch.bool))
    logits = torch.tensor([[4.0, 3.0, -1.0]])
    assert [int(sampler(logits)) for _ in range(3)] == [0, 1, 0]


def test_a_draw_is_that_of_torch_multinomial_with_the_same_seed() -> None:
    sampler = Sampler(Sampling(temperature=1.0, seed=11), none_seen(1))
    generator = torch.Generator().manual_seed(11)
    for step in range(20):
        logits = continuous(step)[:1] / 4
        expected = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
        assert torch.equal(sampler(logits), expected)


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(4, 3)
    sampler = Sampler(Sampling(temperature=1.0), torch.zeros(4, 3, dtype=torch.bool))
    counts = torch.stack([sampler(logits) for _ in range(3000)]).flatten().bincount(minlength=3)
    torch.testing.assert_close(counts / 12000, torch.tensor([0.5, 0.3, 0.2]), rtol=0, atol=0.02)


def test_a_row_draws_the_same_whatever_its_neighbours_are() -> None:
    sampling = Sampling(temperature=1.0, seed=3)
    first, second = (Sampler(sampling, none_seen(rows)) for rows in (2, 5))
    logits = torch.zeros(5, 97)
    draws = [(first(logits[:2]), second(logits)) for _ in range(10)]
    assert all(torch.equal(few, many[:2]) for few, many in draws)
    assert len({tuple(int(many[row]) for _, many in draws) for row in range(5)}) == 5


def test_another_seed_is_not_the_same_draws_one_row_further() -> None:
    logits = torch.zeros(5, 97)
    one, other = (Sampler(Sampling(temperature=1.0, seed=seed), none_seen()) for seed in (0, 1))
    rows = [torch.stack([sampler(logits) for _ in range(8)]).T.tolist() for sampler in (one, other)]
    assert not {tuple(row) for row in rows[0]} & {tuple(row) for row in rows[1]}


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, top_k=5, top_p=0.5)])
@pytest.mark.parametrize("damage", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_marked_and_spare_the_other_rows(
    sampling: Sampling, damage: float
) -> None:
    sampling = replace(sampling, repetition_penalty=1.2)
    logits = continuous(0)
    expected = Sampler(sampling, none_seen())(logits)
    expected[2] = -1
    logits[2, 40] = damage
    assert torch.equal(Sampler(sampling, none_seen())(logits), expected)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_tokens": 0}, "max_tokens=0 must be at least 1"),
        ({"temperature": -0.1}, r"temperature=-0\.1 must be 0, for the likeliest token, or at least"),
        ({"temperature": 1e-30}, "temperature=1e-30 must be 0"),
        ({"temperature": float("nan")}, "temperature=nan must be 0"),
        ({"top_p": 0.0}, r"top_p=0\.0 must be in \(0, 1\]"),
        ({"top_p": 1.1}, r"top_p=1\.1 must be in"),
        ({"top_k": -1}, "top_k=-1 cannot be negative"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must be positive"),
        ({"stop": "end"}, "stop='end' must be a tuple of strings"),
        ({"stop": ("a", "")}, "must be a tuple of strings that are not empty"),
        ({"seed": -1}, "seed=-1 must be in"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(setting: dict[str, Any], message: str) -> None:
    make: Callable[..., Sampling] = Sampling
    with pytest.raises(ConfigError, match=message):
        make(**setting)
