"""Chunks that go on from what a robot is committed to: by gradient, or because the network learned it."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tailorbird.errors import ConfigError
from tailorbird.model.config import Solver
from tailorbird.model.flow import Guide, guided, held, integrate, interpolate
from tiny import TINY_VLA, VARIANTS, new_model, observed

SOLVERS: tuple[Solver, ...] = ("euler", "heun", "midpoint")


def still(x: Tensor, t: Tensor) -> Tensor:
    """No velocity: the chunk that it leads to is where one is, and its Jacobian is the identity."""
    return 0 * x


def paper(t: float, beta: float) -> float:
    """The guidance weight as the paper writes it, with its time."""
    tau = 1 - t
    if tau in (0, 1):
        return beta
    r2 = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
    return min(beta, (1 - tau) / (tau * r2))


@pytest.mark.parametrize("beta", [3.0, 5.0, 1e4])
@pytest.mark.parametrize("t", [0.0, 0.1, 0.3, 0.5, 0.8, 0.999, 1.0])
def test_the_difference_to_the_target_counts_as_the_paper_says_and_is_finite_at_both_ends(
    t: float, beta: float
) -> None:
    x, guide = torch.randn(2, 5, 3), Guide(torch.randn(2, 5, 3), torch.rand(2, 5))
    found = guided(still, guide, beta)(x, torch.full((2,), t))
    expected = -paper(t, beta) * guide.weight[..., None] * (guide.target - x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def linear(matrix: Tensor, shift: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return (x.flatten(1) @ matrix.T + shift).unflatten(1, x.shape[1:])

    return velocity


@pytest.mark.parametrize("num_steps", [1, 3])
def test_on_a_linear_field_guided_steps_are_those_of_the_closed_form(num_steps: int) -> None:
    draw = torch.Generator().manual_seed(1)
    matrix, shift = torch.randn(6, 6, generator=draw) / 3, torch.randn(6, generator=draw)
    noise, target = torch.randn(4, 3, 2, generator=draw), torch.randn(4, 3, 2, generator=draw)
    weight = torch.tensor([1.0, 0.4, 0.0]).expand(4, -1)
    found = integrate(guided(linear(matrix, shift), Guide(target, weight), 5.0), noise, num_steps)
    ends = {}
    for name, turn in (("transposed", Tensor.t), ("as it is", Tensor.clone)):
        x = noise.flatten(1)  # (4, 6)
        for step in range(num_steps):
            t = 1 - step / num_steps
            v, jacobian = x @ matrix.T + shift, torch.eye(6) - t * matrix
            error = weight.repeat_interleave(2, dim=1) * (target.flatten(1) - (x - t * v))
            x = x - (v - paper(t, 5.0) * error @ turn(jacobian).T) / num_steps
        ends[name] = x.unflatten(1, (3, 2))
    torch.testing.assert_close(found, ends["transposed"], rtol=1e-4, atol=1e-4)
    assert (found - ends["as it is"]).abs().max() > 0.1


def test_it_moves_against_the_gradient_that_finite_differences_find() -> None:
    draw = torch.Generator().manual_seed(2)
    mix, t = torch.randn(6, 6, generator=draw), 0.7

    def bent(x: Tensor, _: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1) @ mix).unflatten(1, (3, 2)) * x.square()

    x, target = torch.randn(1, 3, 2, generator=draw), torch.randn(1, 3, 2, generator=draw)
    guide, time = Guide(target, torch.tensor([[1.0, 0.5, 0.0]])), torch.tensor([t])

    def distance(place: Tensor) -> float:
        end = place - t * bent(place, time)
        return float((guide.weight[..., None] * (target - end).square()).sum() / 2)

    gradient = torch.zeros(6)
    for i in range(6):
        nudge = torch.zeros(6).index_fill(0, torch.tensor(i), 1e-2).view(1, 3, 2)
        gradient[i] = (distance(x + nudge) - distance(x - nudge)) / 2e-2
    found = (guided(bent, guide, 5.0)(x, time) - bent(x, time)).flatten()
    torch.testing.assert_close(found, paper(t, 5.0) * gradient, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_where_nothing_counts_the_flow_is_bit_for_bit_the_free_one(solver: Solver) -> None:
    model = new_model(VARIANTS["heun"] if solver == "heun" else TINY_VLA)
    noise, target = torch.randn(3, 7, 3), torch.randn(3, 7, 3)
    weight = torch.zeros(3, 7)
    weight[1, :4] = 1
    with torch.inference_mode():
        prefix = model.encode(observed(model.cfg, 3, 2))
        free, found = model.sample(prefix, noise), model.sample(prefix, noise, Guide(target, weight))
    assert torch.equal(found[[0, 2]], free[[0, 2]])
    assert not torch.allclose(found[1], free[1], atol=0.1)


@pytest.mark.parametrize("name", VARIANTS)
def test_frozen_actions_come_out_near_the_committed_ones_in_inference_mode(name: str) -> None:
    model = new_model(VARIANTS[name])
    draw = torch.Generator().manual_seed(3)
    noise = torch.randn(5, 7, 3, generator=draw)
    weight = (torch.arange(7) < 4).float().expand(5, -1)
    with torch.inference_mode():
        prefix = model.encode(observed(model.cfg, 5, 2))
        before = model.sample(prefix, torch.randn(5, 7, 3, generator=draw))  # a chunk that it could have made
        free, found = model.sample(prefix, noise), model.sample(prefix, noise, Guide(before, weight))
    far, near = ((chunk - before)[:, :4].square().mean().sqrt() for chunk in (free, found))
    assert near < 0.25 * far
    assert all(value.grad is None for value in model.parameters())


def test_a_velocity_without_a_gradient_is_refused() -> None:
    guide = Guide(torch.zeros(1, 3, 2), torch.ones(1, 3))
    with pytest.raises(ConfigError, match=r"take the engine torch, or .* --train\.max-delay"):
        guided(lambda x, t: x.detach(), guide, 5.0)(torch.ones(1, 3, 2), torch.ones(1))


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_is_held_stays_bit_for_bit_and_its_time_is_zero(solver: Solver) -> None:
    frozen, times = torch.tensor([[True, True, False], [False, False, False]]), []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        times.append(t)
        return x + 1

    start = torch.randn(2, 3, 2)
    end = integrate(held(velocity, frozen), start, 4, solver)
    assert torch.equal(end[frozen], start[frozen])
    assert torch.equal(end[~frozen], integrate(lambda x, t: x + 1, start, 4, solver)[~frozen])
    assert all(not t[frozen].any() for t in times)
    assert [t[1].unique().numel() for t in times] == [1] * len(times)
    assert times[0][1, 0] == 1


def test_times_of_actions_that_are_all_the_same_are_the_time_of_the_chunk_bit_for_bit() -> None:
    model, t = new_model(), torch.tensor([0.3, 0.8, 1.0])
    x_t, prefix = torch.randn(3, 7, 3), model.encode(observed(TINY_VLA, 3, 2))
    velocity = model.velocity(x_t, t, prefix)
    assert torch.equal(model.velocity(x_t, t[:, None].expand(3, 7), prefix), velocity)
    later = t[:, None].repeat(1, 7)
    later[:, 4] = 0
    moved = (model.velocity(x_t, later, prefix) - velocity).abs().amax((0, 2)) > 1e-5
    assert moved.tolist() == [False] * 4 + [True] * 3  # actions see those before them


def test_each_action_can_have_its_own_place_on_the_path() -> None:
    x_t, _ = interpolate(torch.zeros(1, 3, 2), torch.ones(1, 3, 2), torch.tensor([[0.0, 0.25, 1.0]]))
    assert x_t[0, :, 0].tolist() == [0.0, 0.25, 1.0]


@pytest.mark.parametrize("num_steps", [1, 2, 3, 10])
def test_frozen_actions_are_held_with_few_steps_too(num_steps: int) -> None:
    model = new_model(replace(TINY_VLA, num_steps=num_steps))
    noise, before = torch.randn(8, 7, 3), torch.randn(8, 7, 3)
    prefix = model.encode(observed(model.cfg, 8, 2))
    guide = Guide(before, (torch.arange(7) < 3).float().expand(8, -1))
    free, found = (
        (model.sample(prefix, noise, one) - before)[:, :3].square().mean().sqrt() for one in (None, guide)
    )
    assert found < (0.7 if num_steps == 1 else 0.2) * free


def test_no_more_is_held_than_was_learned() -> None:
    model = new_model(replace(TINY_VLA, max_delay=2))
    noise, before = torch.randn(1, 7, 3), torch.randn(1, 7, 3)
    prefix = model.encode(observed(model.cfg, 1, 2))
    found = model.sample(prefix, noise, Guide(before, torch.ones(1, 7)))
    assert (found == before).all(-1).tolist() == [[True, True, *[False] * 5]]
