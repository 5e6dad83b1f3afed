"""Statistics, against NumPy and against known answers."""

import numpy as np
import pytest

from tailorbird.data.stats import QUANTILES, describe, describe_frames, merge


def test_numbers_are_described_as_numpy_would() -> None:
    values = np.random.default_rng(0).standard_normal((53, 3)).astype(np.float32)
    found = describe(values)
    exact = values.astype(np.float64)
    assert found.keys() == {"min", "max", "mean", "std", "count", *QUANTILES}
    for name in ("min", "max", "mean", "std"):
        np.testing.assert_array_equal(found[name], getattr(exact, name)(0))
    for name, q in QUANTILES.items():
        np.testing.assert_array_equal(found[name], np.quantile(exact, q, axis=0))
    assert found["count"].tolist() == [53]


def test_a_single_number_per_row_keeps_one_dimension() -> None:
    found = describe(np.array([4, 1, 7]))
    assert {name: value.shape for name, value in found.items()} == dict.fromkeys(found, (1,))
    assert (found["min"][0], found["q50"][0], found["max"][0]) == (1, 4, 7)


@pytest.mark.parametrize("num", [1, 2, 5])
def test_counting_grey_levels_equals_describing_every_pixel(num: int) -> None:
    frames = np.random.default_rng(num).integers(3, 250, (num, 6, 9, 3), dtype=np.uint8)
    found = describe_frames(frames)
    for channel in range(3):
        plain = describe(frames[..., channel].ravel())
        for name in found.keys() - {"count"}:
            assert found[name].shape == (3, 1, 1)
            np.testing.assert_allclose(found[name][channel, 0, 0], plain[name][0] / 255, rtol=1e-13)
    assert found["count"].tolist() == [num]


def test_of_a_long_episode_only_frames_spread_over_it_are_counted() -> None:
    frames = np.arange(201, dtype=np.uint8)[:, None, None, None].repeat(3, -1)  # (201, 1, 1, 3)
    found = describe_frames(frames, most=5)
    assert found["count"].tolist() == [5]
    assert found["mean"].ravel().tolist() == pytest.approx([100 / 255] * 3)
    assert (found["min"][0, 0, 0], found["max"][0, 0, 0]) == (0, 200 / 255)


def test_merged_parts_give_the_answer_worked_out_by_hand() -> None:
    parts = [describe(np.array([[0.0], [2.0]])), describe(np.array([[5.0]]))]
    found = merge(parts)
    assert found["count"].tolist() == [3]
    assert (found["min"][0], found["max"][0]) == (0, 5)
    assert found["mean"][0] == pytest.approx(7 / 3)
    assert found["std"][0] == pytest.approx(np.sqrt((4 + 25) / 3 - (7 / 3) ** 2))
    assert found["q50"][0] == pytest.approx((2 * 1 + 1 * 5) / 3)  # averaged, not exact


def test_merging_is_exact_but_for_quantiles() -> None:
    values = np.random.default_rng(1).standard_normal((31, 2))
    merged, exact = merge([describe(part) for part in np.split(values, [4, 20])]), describe(values)
    for name in ("min", "max", "mean", "std", "count"):
        np.testing.assert_allclose(merged[name], exact[name], rtol=1e-12)


def test_quantiles_that_a_part_lacks_are_left_out() -> None:
    whole, partial = describe(np.arange(4.0)), describe(np.arange(6.0))
    del partial["q01"]
    assert "q01" not in merge([whole, partial])
    assert "q99" in merge([whole, partial])
