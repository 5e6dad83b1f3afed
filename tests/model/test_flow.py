"""The path from noise to actions: exact where the answer is known."""

import math

import pytest
import torch
from torch import Tensor

from tailorbird.model.config import Solver
from tailorbird.model.flow import flow_loss, integrate, interpolate, sample_time, trajectory


def test_the_path_begins_at_the_noise_and_ends_at_the_actions() -> None:
    actions, noise = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    x_t, velocity = interpolate(actions, noise, torch.tensor([0.0, 1.0]))
    assert torch.equal(x_t[0], actions[0])
    assert torch.equal(x_t[1], noise[1])
    assert torch.equal(velocity, noise - actions)


def test_a_quarter_of_the_way_is_a_quarter_noise() -> None:
    actions, noise = torch.full((1, 1, 2), 8.0), torch.tensor([[[0.0, 16.0]]])
    x_t, velocity = interpolate(actions, noise, torch.tensor([0.25]))
    assert x_t.tolist() == [[[6.0, 10.0]]]
    assert velocity.tolist() == [[[-8.0, 8.0]]]


def test_each_row_has_its_own_time() -> None:
    x_t, _ = interpolate(torch.zeros(3, 2, 4), torch.ones(3, 2, 4), torch.tensor([0.0, 0.5, 0.75]))
    assert [row.unique().tolist() for row in x_t] == [[0.0], [0.5], [0.75]]


@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint"])
@pytest.mark.parametrize("num_steps", [1, 2, 8])
def test_a_constant_velocity_is_followed_exactly(num_steps: int, solver: Solver) -> None:
    noise, constant = torch.tensor([[[4.0, -2.0, 0.5]]]), torch.tensor([[[1.0, 3.0, -2.0]]])
    assert torch.equal(integrate(lambda x, t: constant, noise, num_steps, solver), noise - constant)


@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_a_linear_field_shrinks_as_euler_says(num_steps: int) -> None:
    noise = torch.randn(2, 5, 3)
    end = integrate(lambda x, t: x, noise, num_steps)
    torch.testing.assert_close(end, noise * (1 - 1 / num_steps) ** num_steps, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("solver", ["heun", "midpoint"])
@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_on_a_linear_field_the_second_order_solvers_keep_one_more_term(
    num_steps: int, solver: Solver
) -> None:
    noise, step = torch.randn(2, 5, 3), 1 / num_steps
    end = integrate(lambda x, t: x, noise, num_steps, solver)
    torch.testing.assert_close(end, noise * (1 - step + step**2 / 2) ** num_steps, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("solver", ["heun", "midpoint"])
@pytest.mark.parametrize("num_steps", [1, 3, 8])
def test_a_velocity_that_changes_evenly_with_time_is_followed_exactly(num_steps: int, solver: Solver) -> None:
    noise = torch.randn(2, 5, 3)
    end = integrate(lambda x, t: t[:, None, None].expand_as(x) * 2, noise, num_steps, solver)
    torch.testing.assert_close(end, noise - 1, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("midpoint", 2)])
def test_the_error_on_a_curved_field_falls_with_the_order_of_the_solver(solver: Solver, order: int) -> None:
    def field(x: Tensor, t: Tensor) -> Tensor:  # solved by x = 1 / (2 - t^2)
        return 2 * t[:, None, None] * x.square()

    few, many = (abs(integrate(field, torch.ones(1, 1, 1), n, solver).item() - 0.5) for n in (8, 32))
    assert math.log(few / many, 4) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize(("solver", "calls"), [("euler", 1), ("heun", 2), ("midpoint", 2)])
def test_each_step_of_a_trajectory_shows_its_place_its_velocity_and_its_cost(
    solver: Solver, calls: int
) -> None:
    seen: list[float] = []

    def field(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t[0].item())
        return x.square() - t[:, None, None]

    before = torch.randn(2, 5, 3)
    end, steps = integrate(field, before, 4, solver), trajectory(field, before, 4, solver)
    seen.clear()
    for number, (place, velocity) in enumerate(steps, 1):
        assert torch.equal(place, before - velocity / 4)
        before = place
        assert len(seen) == number * calls
    assert torch.equal(before, end)
    second = {"euler": [], "heun": [0.75], "midpoint": [0.875]}[solver]
    assert seen[:calls] == [1.0, *second]


@pytest.mark.parametrize("num_steps", [1, 2, 5, 10])
def test_time_runs_from_one_down_to_one_step_above_zero(num_steps: int) -> None:
    times: list[list[float]] = []

    def field(x: Tensor, t: Tensor) -> Tensor:
        times.append(t.tolist())
        return torch.zeros_like(x)

    integrate(field, torch.zeros(2, 1, 1), num_steps)
    assert times == [pytest.approx([1 - i / num_steps] * 2) for i in range(num_steps)]


@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_the_true_velocity_towards_one_chunk_ends_at_that_chunk(num_steps: int) -> None:
    chunk, noise = torch.randn(1, 5, 3), torch.randn(4, 5, 3)
    end = integrate(lambda x, t: (x - chunk) / t[:, None, None], noise, num_steps)
    torch.testing.assert_close(end, chunk.expand(4, 5, 3), rtol=1e-5, atol=1e-5)


def test_small_steps_are_added_in_fp32_whatever_the_network_computes_in() -> None:
    step = torch.full((1, 1, 1), 1 / 256, dtype=torch.bfloat16)  # 1 - step / 4 is 1 in bf16
    given = set()

    def field(x: Tensor, t: Tensor) -> Tensor:
        given.add(x.dtype)
        return step

    end = integrate(field, torch.ones(1, 1, 1, dtype=torch.bfloat16), 4)
    assert given == {torch.float32}
    assert end.dtype == torch.float32
    assert end.item() == 1 - 1 / 256


def test_training_times_follow_the_squeezed_beta_distribution() -> None:
    t, _ = sample_time(4000, torch.Generator().manual_seed(0)).sort()
    assert t[0] >= 0.001
    assert t[-1] <= 1.0
    expected = ((t - 0.001) / 0.999) ** 1.5  # distribution function of Beta(1.5, 1)
    empirical = torch.arange(1, 4001) / 4000
    assert (empirical - expected).abs().max() < 1.95 / 4000**0.5  # Kolmogorov-Smirnov, 1 in 1000


def test_the_same_generator_draws_the_same_times() -> None:
    one, same, other = (sample_time(9, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_loss_is_the_sum_of_mean_squares_over_the_actions_that_exist() -> None:
    velocity = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 7.0], [0.0, 0.0]]])
    valid = torch.tensor([[True, True], [True, False]])
    assert flow_loss(velocity, torch.zeros(2, 2, 2), valid).item() == pytest.approx(2.5 + 12.5 + 37)


def test_the_loss_ignores_what_lies_past_the_end_of_the_episode() -> None:
    velocity, target = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    valid = torch.arange(5) < torch.tensor([[5], [2]])
    changed = torch.where(valid[..., None], velocity, torch.full_like(velocity, 1e3))
    assert torch.equal(flow_loss(velocity, target, valid), flow_loss(changed, target, valid))
    assert not torch.equal(flow_loss(velocity, target, valid), flow_loss(changed, target, valid | True))


def test_the_loss_is_fp32_even_when_the_network_is_not() -> None:
    velocity, valid = torch.randn(2, 5, 3).bfloat16(), torch.ones(2, 5, dtype=torch.bool)
    loss = flow_loss(velocity, torch.zeros(2, 5, 3), valid)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss / 10, velocity.float().square().mean(), rtol=1e-6, atol=0)
