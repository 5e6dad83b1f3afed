import numpy as np
import pytest

from tailorbird.evals.metrics import percentiles, wilson


def test_the_interval_is_wilsons() -> None:
    low, high = wilson(8, 10)  # the worked example of Newcombe 1998 has 0.490 and 0.943
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)


def test_the_interval_is_honest_at_the_ends() -> None:
    assert wilson(0, 20)[0] == 0
    assert 0 < wilson(0, 20)[1] < 0.2
    assert wilson(20, 20)[1] == pytest.approx(1)
    assert 0.8 < wilson(20, 20)[0] < 1


@pytest.mark.parametrize(("successes", "trials"), [(1, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} successes in {trials} trials"):
        wilson(successes, trials)


def test_the_interval_covers_the_true_rate_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).binomial(20, 0.8, 4000)
    covered = np.mean([low <= 0.8 <= high for low, high in (wilson(int(k), 20) for k in draws)])
    assert 0.93 < covered < 0.98


def test_percentiles_of_a_ramp() -> None:
    found = percentiles([float(i) for i in range(101)])
    assert found == {"p50": 50, "p90": 90, "p99": 99, "max": 100}
