"""Optimizer, learning rate and averaged weights, with known answers."""

from dataclasses import replace

import pytest
import torch
from small import new_model
from torch import nn

from tailorbird.train.config import LearnConfig, Pace, TrainConfig
from tailorbird.train.optim import average, build_optimizer, lr_at, lr_of, put_slots, set_rates, slots_of
from tailorbird.train.stages import choose


def test_matrices_decay_and_vectors_do_not() -> None:
    model, cfg = new_model(), TrainConfig(weight_decay=0.25, lr=3e-4, betas=(0.8, 0.9))
    groups = choose(model, LearnConfig(connector=Pace(learns=False)), 0)
    matrices, vectors = build_optimizer(groups, cfg).param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.25, 0.0)
    assert {(g["lr"], g["betas"]) for g in (matrices, vectors)} == {(3e-4, (0.8, 0.9))}
    assert {p.ndim for p in matrices["params"]} == {2, 4}
    assert {p.ndim for p in vectors["params"]} == {1}
    learned = {id(p) for p in [*matrices["params"], *vectors["params"]]}
    frozen = {id(p) for p in model.vlm.connector.parameters()}
    assert learned == {id(p) for p in model.parameters()} - frozen


def test_decay_shrinks_a_matrix_without_gradient_and_leaves_a_vector() -> None:
    layer = nn.Linear(2, 2)
    optimizer = build_optimizer(choose(layer, LearnConfig(), 0), TrainConfig(lr=0.5, weight_decay=0.25))
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


def test_what_learns_late_is_at_its_share_of_the_rate_once_it_has_warmed_up_too() -> None:
    cfg = TrainConfig(steps=1000, warmup=4, lr=2.0, final_lr=0.1)
    late = Pace(rate=0.25, start=400)
    assert [lr_of(late, step, cfg) for step in (0, 395)] == [0.0, 0.0]
    shares = [lr_of(late, 400 + age, cfg) / lr_at(400 + age, cfg) for age in range(7)]
    assert shares == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.25, 0.25, 0.25])
    early = replace(late, start=0)
    assert [lr_of(early, step, cfg) / lr_at(step, cfg) for step in (0, 3, 700)] == [0.25] * 3


def test_the_average_of_what_learns_late_is_short_when_it_begins() -> None:
    mean, model = nn.Linear(1, 1), nn.Linear(1, 1)
    groups = choose(model, LearnConfig(), 0)
    late = [replace(group, pace=Pace(start=50)) for group in groups]
    before = mean.weight.item()
    average(mean, late, 49, decay=0.75)
    assert mean.weight.item() == before
    average(mean, late, 50, decay=0.75)
    assert mean.weight.item() == pytest.approx(before + 0.9 * (model.weight.item() - before))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of torchao
def test_moments_of_eight_bits_learn_alike_and_come_back_bit_for_bit() -> None:
    cfg, x = TrainConfig(lr=1e-2, optimizer="adamw8bit"), torch.randn(7, 128)

    def start(cfg: TrainConfig, layer: nn.Linear) -> torch.optim.Optimizer:
        torch.manual_seed(0)
        nn.init.normal_(layer.weight, std=0.1)
        return build_optimizer(choose(layer, LearnConfig(), 0), cfg)

    def step(layer: nn.Linear, optimizer: torch.optim.Optimizer, number: int) -> None:
        set_rates(optimizer, number, cfg)
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        optimizer.step()

    narrow, wide, again = (nn.Linear(128, 96, bias=False) for _ in range(3))
    ours, plain, other = start(cfg, narrow), start(replace(cfg, optimizer="adamw"), wide), start(cfg, again)
    with torch.compiler.set_stance("force_eager"):  # torchao compiles each shape for seconds
        for number in range(5):
            step(narrow, ours, number)
            step(wide, plain, number)
        moved = (wide.weight - again.weight).norm()
        assert (narrow.weight - wide.weight).norm() < 0.1 * moved
        slots = slots_of(ours, narrow.weight)
        assert slots["exp_avg:codes"].dtype == torch.uint8
        again.load_state_dict(narrow.state_dict())
        put_slots(other, again.weight, {name: value.clone() for name, value in slots.items()})
        step(narrow, ours, 5)
        step(again, other, 5)
    assert torch.equal(narrow.weight, again.weight)


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    assert lr_at(0, TrainConfig(warmup=0, lr=2.0)) == 2.0


@pytest.mark.parametrize(("step", "share"), [(0, 9 / 10), (8, 9 / 18), (10_000, 0.25)])
def test_the_average_moves_by_a_known_share_short_at_first(step: int, share: float) -> None:
    mean, model = nn.Linear(1, 1), nn.Linear(1, 1)
    for layer, value in ((mean, 1.0), (model, 3.0)):
        nn.init.constant_(layer.weight, value)
        nn.init.constant_(layer.bias, -value)
    average(mean, choose(model, LearnConfig(), 0), step, decay=0.75)
    assert mean.weight.item() == pytest.approx(1 + 2 * share)
    assert mean.bias.item() == pytest.approx(-1 - 2 * share)
    assert (model.weight.item(), model.bias.item()) == (3.0, -3.0)
