"""What is minimised and what is measured, against the formula where the network says zero."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import load, mean_loss, new_model
from torch import Tensor, nn

from tailorbird.model.flow import sample_time
from tailorbird.model.vla import VLA
from tailorbird.processing.normalize import Normalizer
from tailorbird.train.vla_step import measure
from tailorbird.types import Batch


@pytest.fixture
def batch(discs: Path) -> Batch:
    """Eleven observations; some are so near the end of their episode that actions are missing."""
    loader, _ = load(discs, discs.with_name("frames"))
    found = loader.load(loader.rows[:22:2])
    assert 0 < found.valid.sum() < found.valid.numel()
    return found


@pytest.fixture
def silent() -> VLA:
    """Predicts a velocity of zero, so that sampling returns the noise."""
    model = new_model()
    nn.init.zeros_(model.action_out.weight)
    return model


def masked_mean(values: Tensor, valid: Tensor) -> float:
    return values.mean(-1)[valid].mean().item()


@pytest.mark.parametrize("draws", [1, 3])
def test_the_loss_compares_with_noise_minus_actions_for_each_draw(
    silent: VLA, batch: Batch, draws: int
) -> None:
    loss = mean_loss(silent, batch, draws, torch.Generator().manual_seed(5))
    actions, valid = (part.repeat_interleave(draws, dim=0) for part in (batch.actions, batch.valid))
    noise = torch.randn(actions.shape, generator=torch.Generator().manual_seed(5))
    assert loss.item() == pytest.approx(masked_mean((noise - actions).square(), valid), rel=1e-5)


def test_more_draws_cost_no_other_batch(batch: Batch) -> None:
    model, one = new_model(), torch.Generator().manual_seed(5)
    loss = mean_loss(model, batch, 2, one)
    noise = torch.randn(22, 4, 2, generator=one.manual_seed(5))
    t = sample_time(22, one)
    actions = batch.actions.repeat_interleave(2, dim=0)
    x_t = t[:, None, None] * noise + (1 - t[:, None, None]) * actions
    prefix = model.encode(batch.inputs)
    parts = []
    for row in range(22):
        mine = type(prefix)(
            [type(kv)(kv.k[row // 2 : row // 2 + 1], kv.v[row // 2 : row // 2 + 1]) for kv in prefix.layers],
            prefix.valid[row // 2 : row // 2 + 1],
        )
        velocity = model.velocity(x_t[row : row + 1], t[row : row + 1], mine)[0]
        error = (velocity - (noise - actions)[row]).square().mean(-1)
        parts.append(error[batch.valid[row // 2]])
    assert loss.item() == pytest.approx(torch.cat(parts).mean().item(), rel=1e-4)


def test_the_action_error_is_in_physical_units(discs: Path, silent: VLA, batch: Batch) -> None:
    pipeline = load(discs, discs.with_name("frames"))[0].pipeline
    found = measure(silent, batch, replace(pipeline, action=Normalizer(mean=(5.0, -3.0), std=(2.0, 0.5))), 5)
    generator = torch.Generator().manual_seed(5)
    torch.randn(batch.actions.shape, generator=generator)
    sample_time(len(batch.actions), generator)
    noise = torch.randn(batch.actions.shape, generator=generator)
    error = (noise - batch.actions).abs() * torch.tensor([2.0, 0.5])
    assert found["action_error"] == pytest.approx(masked_mean(error, batch.valid), rel=1e-5)
    assert found.keys() == {"held_out_loss", "action_error"}


def test_measuring_twice_gives_the_same_numbers_and_no_gradient(discs: Path, batch: Batch) -> None:
    model, pipeline = new_model(), load(discs, discs.with_name("frames"))[0].pipeline
    first = measure(model, batch, pipeline, 5)
    torch.randn(3)  # the global generator does not matter
    assert measure(model, batch, pipeline, 5) == first
    assert measure(model, batch, pipeline, 6) != first
    assert all(parameter.grad is None for parameter in model.parameters())
