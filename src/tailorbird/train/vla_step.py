"""What is minimised where actions are learned, and what is measured on what is not learned from."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tailorbird.model.config import VLAConfig
from tailorbird.model.flow import flow_loss, interpolate, sample_time
from tailorbird.model.vla import VLA
from tailorbird.processing.pipeline import Pipeline
from tailorbird.types import Batch, Inputs

DRAWN = ("actions", "noise", "t", "valid")


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Observations with R noises and times each, in neighbouring rows."""

    inputs: Inputs
    actions: Tensor  # (B * R, L, A)
    noise: Tensor  # (B * R, L, A)
    t: Tensor  # (B * R,), or (B * R, L)
    valid: Tensor  # (B * R, L) bool, True at what is learned

    def to(self, device: torch.device | str) -> "Drawn":
        moved = {name: getattr(self, name).to(device) for name in DRAWN}
        return replace(self, inputs=self.inputs.to(device), **moved)

    def split(self, num: int) -> list["Drawn"]:
        """So many parts of one size."""
        seen = {name: value.chunk(num) for name, value in vars(self.inputs).items()}
        rest = {name: getattr(self, name).chunk(num) for name in DRAWN}
        return [
            Drawn(
                inputs=Inputs(**{name: parts[i] for name, parts in seen.items()}),
                **{name: parts[i] for name, parts in rest.items()},
            )
            for i in range(num)
        ]


def draw(cfg: VLAConfig, batch: Batch, draws: int, generator: torch.Generator) -> Drawn:
    """Noises and times for a batch, `draws` per observation.

    A model that is to go on from actions it is given gets up to `cfg.max_delay` of them, each number as often
    as any other, and learns the rest.

    generator: of the CPU, whose numbers are the same beside every device.

    Source: training-time action conditioning, arXiv:2512.05964, whose time is 1 - t.
    """
    actions = batch.actions.repeat_interleave(draws, dim=0)  # (B * R, L, A)
    noise = torch.randn(actions.shape, generator=generator).to(actions.device)
    t = sample_time(len(actions), generator).to(actions.device)  # (B * R,)
    valid = batch.valid.repeat_interleave(draws, dim=0)  # (B * R, L)
    if cfg.max_delay:
        given = _given(cfg.max_delay, valid, generator)
        t, valid = t[:, None].masked_fill(given, 0), valid & ~given  # t: (B * R, L)
    return Drawn(inputs=batch.inputs, actions=actions, noise=noise, t=t, valid=valid)


def _given(max_delay: int, valid: Tensor, generator: torch.Generator) -> Tensor:
    """Which actions of each chunk are given, (B, L) bool as `valid`: the first few."""
    delay = torch.randint(max_delay + 1, (len(valid), 1), generator=generator)
    return (torch.arange(valid.shape[1]) < delay).to(valid.device)


def vla_loss(model: VLA, drawn: Drawn) -> Tensor:
    """Flow-matching loss, summed over the actions that are learned, a scalar."""
    x_t, target = interpolate(drawn.actions, drawn.noise, drawn.t)
    return flow_loss(model(drawn.inputs, x_t, drawn.t), target, drawn.valid)


@torch.no_grad()
def measure(model: VLA, batch: Batch, pipeline: Pipeline, seed: int) -> dict[str, float]:
    """Held-out loss, and the mean absolute error of sampled actions in physical units.

    Same seed, same noises.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = draw(model.cfg, batch, 1, generator)
    loss = vla_loss(model, drawn) / drawn.valid.sum().clamp_min(1)
    noise = torch.randn(batch.actions.shape, generator=generator).to(batch.actions.device)
    chunk = pipeline.physical(model.sample(model.encode(batch.inputs), noise))
    error = (chunk - pipeline.physical(batch.actions)).abs().mean(-1)  # (B, L)
    return {
        "held_out_loss": loss.item(),
        "action_error": ((error * batch.valid).sum() / batch.valid.sum()).item(),
    }
