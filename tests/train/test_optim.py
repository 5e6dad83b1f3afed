"""Optimizer, learning rate and averaged weights, with known answers."""

import pytest
import torch
from small import new_model
from torch import nn

from tailorbird.train.config import TrainConfig
from tailorbird.train.optim import average, build_optimizer, lr_at


def test_matrices_decay_and_vectors_do_not() -> None:
    model, cfg = new_model(), TrainConfig(weight_decay=0.25, lr=3e-4, betas=(0.8, 0.9))
    model.state_in.requires_grad_(False)
    matrices, vectors = build_optimizer(model, cfg).param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.25, 0.0)
    assert {(g["lr"], g["betas"]) for g in (matrices, vectors)} == {(3e-4, (0.8, 0.9))}
    assert {p.ndim for p in matrices["params"]} == {2, 4}
    assert {p.ndim for p in vectors["params"]} == {1}
    learned = {id(p) for p in [*matrices["params"], *vectors["params"]]}
    assert learned == {id(p) for p in model.parameters()} - {id(p) for p in model.state_in.parameters()}


def test_decay_shrinks_a_matrix_without_gradient_and_leaves_a_vector() -> None:
    layer = nn.Linear(2, 2)
    optimizer = build_optimizer(layer, TrainConfig(lr=0.5, weight_decay=0.25))
    before = layer.weight.detach().clone(), layer.bias.detach().clone()
    layer.weight.grad, layer.bias.grad = torch.zeros(2, 2), torch.zeros(2)
    optimizer.step()
    torch.testing.assert_close(layer.weight, before[0] * (1 - 0.5 * 0.25), rtol=1e-6, atol=0)
    assert torch.equal(layer.bias, before[1])


def test_the_rate_warms_up_evenly_and_then_follows_the_cosine() -> None:
    cfg = TrainConfig(steps=1000, warmup=4, lr=2.0, final_lr=0.1)
    assert [lr_at(step, cfg) / 2.0 for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1], rel=1e-4)
    assert lr_at(500, cfg) == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert lr_at(999, cfg) == pytest.approx(2.0 * 0.1, rel=1e-3)
    after = [lr_at(step, cfg) for step in range(4, 1000)]
    assert after == sorted(after, reverse=True)


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    assert lr_at(0, TrainConfig(warmup=0, lr=2.0)) == 2.0


@pytest.mark.parametrize(("step", "share"), [(0, 9 / 10), (8, 9 / 18), (10_000, 0.25)])
def test_the_average_moves_by_a_known_share_short_at_first(step: int, share: float) -> None:
    mean, model = nn.Linear(1, 1), nn.Linear(1, 1)
    for layer, value in ((mean, 1.0), (model, 3.0)):
        nn.init.constant_(layer.weight, value)
        nn.init.constant_(layer.bias, -value)
    average(mean, model, step, decay=0.75)
    assert mean.weight.item() == pytest.approx(1 + 2 * share)
    assert mean.bias.item() == pytest.approx(-1 - 2 * share)
    assert (model.weight.item(), model.bias.item()) == (3.0, -3.0)
