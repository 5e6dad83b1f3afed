"""What is minimised, and what is measured on episodes that are not learned from."""

import torch
from torch import Tensor

from tailorbird.model.flow import flow_loss, interpolate, sample_time
from tailorbird.model.vla import VLA
from tailorbird.processing.pipeline import Pipeline
from tailorbird.types import Batch


def vla_loss(model: VLA, batch: Batch, draws: int, generator: torch.Generator) -> Tensor:
    """Flow-matching loss, a scalar, with `draws` noises and times per observation.

    A model that is to go on from actions it is given gets up to `cfg.max_delay` of them, each number as often
    as any other, and learns the rest.

    generator: of the CPU, whose numbers are the same beside every device.

    Source: training-time action conditioning, arXiv:2512.05964, whose time is 1 - t.
    """
    actions = batch.actions.repeat_interleave(draws, dim=0)  # (B * R, L, A)
    noise = torch.randn(actions.shape, generator=generator).to(actions.device)
    t = sample_time(len(actions), generator).to(actions.device)  # (B * R,)
    valid = batch.valid.repeat_interleave(draws, dim=0)  # (B * R, L)
    if model.cfg.max_delay:
        given = _given(model.cfg.max_delay, valid, generator)
        t, valid = t[:, None].masked_fill(given, 0), valid & ~given  # t: (B * R, L)
    x_t, target = interpolate(actions, noise, t)
    return flow_loss(model(batch.inputs, x_t, t), target, valid)


def _given(max_delay: int, valid: Tensor, generator: torch.Generator) -> Tensor:
    """Which actions of each chunk are given, (B, L) bool as `valid`: the first few."""
    delay = torch.randint(max_delay + 1, (len(valid), 1), generator=generator)
    return (torch.arange(valid.shape[1]) < delay).to(valid.device)


@torch.no_grad()
def measure(model: VLA, batch: Batch, pipeline: Pipeline, seed: int) -> dict[str, float]:
    """Held-out loss, and the mean absolute error of sampled actions in physical units.

    Same seed, same noises.
    """
    generator = torch.Generator().manual_seed(seed)
    loss = vla_loss(model, batch, 1, generator)
    noise = torch.randn(batch.actions.shape, generator=generator).to(batch.actions.device)
    chunk = pipeline.physical(model.sample(model.encode(batch.inputs), noise))
    error = (chunk - pipeline.physical(batch.actions)).abs().mean(-1)  # (B, L)
    return {
        "held_out_loss": loss.item(),
        "action_error": ((error * batch.valid).sum() / batch.valid.sum()).item(),
    }
