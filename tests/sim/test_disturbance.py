"""Settings of the world, and the pushes against the arm."""

import numpy as np
import pytest

from tailorbird.errors import ConfigError
from tailorbird.sim.config import ActionNoise, SimConfig


def test_an_action_is_held_for_the_simulator_steps_in_between() -> None:
    assert [SimConfig(control_hz=hz).repeat for hz in (80, 20, 16, 5, 1)] == [1, 4, 5, 16, 80]


@pytest.mark.parametrize("control_hz", [0, -20, 30, 160])
def test_a_rate_that_does_not_divide_the_simulators_is_refused(control_hz: int) -> None:
    with pytest.raises(ConfigError, match=f"control_hz={control_hz} must divide the simulator's 80 Hz"):
        SimConfig(control_hz=control_hz)


def test_a_picture_of_a_few_pixels_is_refused() -> None:
    with pytest.raises(ConfigError, match="size=8 px is too small"):
        SimConfig(size=8)


def test_the_same_seed_draws_the_same_disturbance_and_another_seed_another() -> None:
    noise = ActionNoise(share=1.0)
    first, again, other = (noise.draw(41, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first.shape == (41, 4)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_only_a_share_of_the_episodes_is_disturbed_and_the_grip_never() -> None:
    draws = [ActionNoise(share=0.3).draw(7, np.random.default_rng(seed)) for seed in range(400)]
    disturbed = [draw for draw in draws if draw.any()]
    assert 0.2 < len(disturbed) / len(draws) < 0.4
    assert not any(draw[:, 3].any() for draw in draws)


def test_a_shove_is_one_push_for_its_whole_length() -> None:
    offsets = ActionNoise(white=0.0, shove=0.7, shove_rate=1.0, shove_steps=3, share=1.0).draw(
        8, np.random.default_rng(0)
    )
    pushes = [offsets[0:3], offsets[4:7]]  # a step without comes after each
    for push in pushes:
        assert (push == push[0]).all()
        assert 0 < np.abs(push).max() <= 0.7
    assert not offsets[3].any()
    assert not np.array_equal(pushes[0], pushes[1])


@pytest.mark.parametrize("wrong", [{"share": 1.5}, {"shove_rate": -0.1}, {"white": -1.0}, {"shove_steps": 0}])
def test_an_impossible_disturbance_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="not a disturbance"):
        ActionNoise(**wrong)
