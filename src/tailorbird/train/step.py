"""What is minimised, and what is measured on episodes that are not learned from."""

import torch
from torch import Tensor

from tailorbird.model.flow import flow_loss, interpolate, sample_time
from tailorbird.model.vla import VLA
from tailorbird.processing.pipeline import Pipeline
from tailorbird.types import Batch


def vla_loss(model: VLA, batch: Batch, draws: int, generator: torch.Generator) -> Tensor:
    """Flow-matching loss, a scalar, with `draws` noises and times per observation.

    generator: of the CPU, whose numbers are the same beside every device.
    """
    actions = batch.actions.repeat_interleave(draws, dim=0)  # (B * R, L, A)
    noise = torch.randn(actions.shape, generator=generator).to(actions.device)
    t = sample_time(len(actions), generator).to(actions.device)  # (B * R,)
    x_t, target = interpolate(actions, noise, t)
    return flow_loss(model(batch.inputs, x_t, t), target, batch.valid.repeat_interleave(draws, dim=0))


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
