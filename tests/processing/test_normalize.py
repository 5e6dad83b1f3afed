"""Physical units to normalised numbers and back."""

import math

import numpy as np
import pytest
import torch

from tailorbird.errors import DataError, MissingStats
from tailorbird.processing.normalize import Identity, Normalizer, RangeNormalizer

STATS = {"action": {"mean": [1.0, -2.0], "std": [[4.0], [0.5]]}, "camera": {"min": [0.0]}}


def test_normalised_is_minus_the_mean_divided_by_the_deviation() -> None:
    normal = Normalizer(mean=(1.0, -2.0), std=(4.0, 0.5))
    assert normal(torch.tensor([[9.0, -2.5]])).tolist() == [[2.0, -1.0]]
    assert normal.inverse(torch.tensor([[2.0, -1.0]])).tolist() == [[9.0, -2.5]]


def test_the_inverse_brings_every_value_back() -> None:
    normal = Normalizer(mean=(0.1, -200.0, 3.0), std=(1e-2, 30.0, 7.0))
    x = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0)) * 50
    torch.testing.assert_close(normal.inverse(normal(x)), x, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.bfloat16])
def test_the_result_is_fp32_whatever_comes_in(dtype: torch.dtype) -> None:
    normal = Normalizer(mean=(0.5,), std=(0.1,))
    x = torch.tensor([[3], [4]], dtype=dtype)
    for result in (normal(x), normal.inverse(x)):
        assert result.dtype == torch.float32
    torch.testing.assert_close(normal(x), torch.tensor([[25.0], [35.0]]), rtol=1e-5, atol=0)


def test_statistics_of_any_nesting_become_one_vector() -> None:
    normal = Normalizer.from_stats(STATS, "action", "a dataset")
    assert normal == Normalizer(mean=(1.0, -2.0), std=(4.0, 0.5))
    assert normal.width == 2


@pytest.mark.parametrize("key", ["state", "camera"])
def test_missing_statistics_are_an_error_that_names_what_there_is(key: str) -> None:
    with pytest.raises(MissingStats, match=rf"'{key}': runs/data holds \['action', 'camera'\]"):
        Normalizer.from_stats(STATS, key, "runs/data")


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.0,), (-1.0,)),
        ((math.nan,), (1.0,)),
        ((0.0,), (math.inf,)),
    ],
)
def test_statistics_that_are_no_numbers_are_refused(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="statistics of the dataset again"):
        Normalizer(mean=mean, std=std)


@pytest.mark.parametrize(("mean", "std"), [((), ()), ((0.0,), (1.0, 1.0))])
def test_means_and_deviations_must_describe_one_vector(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    with pytest.raises(DataError, match="do not describe a vector"):
        Normalizer(mean=mean, std=std)


def test_a_number_that_never_changed_carries_nothing_and_comes_back_as_it_was() -> None:
    normal = Normalizer(mean=(2.0, -1.0), std=(0.5, 0.0))
    assert normal(torch.tensor([[3.0, -1.0]])).tolist() == [[2.0, 0.0]]
    assert normal.inverse(torch.tensor([[2.0, 0.7]])).tolist() == [[3.0, -1.0]]


def test_a_range_becomes_minus_one_to_one_and_back() -> None:
    scale = RangeNormalizer(low=(0.0, -4.0), high=(10.0, 4.0))
    assert scale(torch.tensor([[0.0, 4.0], [5.0, 0.0]])).tolist() == [[-1.0, 1.0], [0.0, 0.0]]
    assert scale.inverse(torch.tensor([[-1.0, 1.0], [0.0, 0.0]])).tolist() == [[0.0, 4.0], [5.0, 0.0]]
    still = RangeNormalizer(low=(3.0,), high=(3.0,))
    assert still(torch.tensor([3.0])).tolist() == [-1.0]
    torch.testing.assert_close(still.inverse(torch.tensor([0.9])), torch.tensor([3.0]), rtol=1e-6, atol=0)


def test_a_range_needs_two_finite_limits_for_each_value() -> None:
    with pytest.raises(DataError, match="1 lower and 2 upper limits do not describe a vector"):
        RangeNormalizer(low=(0.0,), high=(1.0, 2.0))
    with pytest.raises(DataError, match=r"upper limits \(inf,\): they must be finite"):
        RangeNormalizer(low=(0.0,), high=(math.inf,))


def test_identity_only_changes_the_type() -> None:
    x = torch.tensor([[3, 4]])
    assert Identity(width=2)(x).tolist() == Identity(width=2).inverse(x).tolist() == [[3.0, 4.0]]
    assert Identity(width=2)(x).dtype == torch.float32


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (Normalizer(mean=(5.0, 7.0), std=(1.0, 0.0)), (1, 7.0)),
        (RangeNormalizer(low=(0.0, 7.0), high=(1.0, 7.0)), (1, 7.0)),
        (Normalizer(mean=(5.0, 7.0), std=(1.0, 1e-3)), None),
        (Identity(width=2), None),
    ],
)
def test_a_value_that_moved_where_none_did_is_found(
    scale: Normalizer | RangeNormalizer | Identity, expected: tuple[int, float] | None
) -> None:
    assert scale.moved(np.array([3.0, 7.5], np.float32)) == expected
    assert scale.moved(np.array([3.0, np.nextafter(np.float32(7), np.float32(8))], np.float32)) is None
