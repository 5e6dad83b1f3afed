"""Physical units to normalised numbers and back."""

import math

import pytest
import torch

from tailorbird.errors import DataError, MissingStats
from tailorbird.processing.normalize import Normalizer

STATS = {"action": {"mean": [1.0, -2.0], "std": [[4.0], [0.5]]}, "camera": {"min": [0.0]}}


def test_normalised_is_minus_the_mean_divided_by_the_deviation() -> None:
    normal = Normalizer(mean=(1.0, -2.0), std=(4.0, 0.5))
    assert normal(torch.tensor([[9.0, -2.5]])).tolist() == [[2.0, -1.0]]
    assert normal.inverse(torch.tensor([[2.0, -1.0]])).tolist() == [[9.0, -2.5]]


def test_the_inverse_brings_every_value_back() -> None:
    normal = Normalizer(mean=(0.1, -200.0, 3.0), std=(1e-4, 30.0, 7.0))
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
