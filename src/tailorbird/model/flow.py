"""Flow matching: the path from noise to actions, its loss, and how it is followed."""

from collections.abc import Callable

import torch
from torch import Tensor


def interpolate(actions: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Point on the straight line from noise to actions, and the velocity along it.

    Convention: t = 1 is noise and t = 0 is data, as in the released SmolVLA weights.

    Args:
        actions: (B, L, A), normalised.
        noise: (B, L, A), standard normal.
        t: (B,), in [0, 1].
    Returns:
        x_t and dx_t/dt, both (B, L, A).
    Source: SmolVLA, arXiv:2506.01844; checked by tests/model/test_flow.py.
    """
    w = t[:, None, None]  # (B, 1, 1)
    return w * noise + (1 - w) * actions, noise - actions


def sample_time(num: int, generator: torch.Generator) -> Tensor:
    """Draw (num,) training times from Beta(1.5, 1), squeezed into [0.001, 1]: more often near the noise.

    The Beta(1.5, 1) distribution function is t^1.5, so a uniform draw to the power 2/3 has it exactly.
    """
    u = torch.rand(num, generator=generator, device=generator.device)
    return u ** (2 / 3) * 0.999 + 0.001


def flow_loss(velocity: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error over the actions that exist.

    Args:
        velocity, target: (B, L, A).
        valid: (B, L), False where the chunk runs past the end of its episode.
    """
    error = (velocity.float() - target).square().mean(-1)  # (B, L); fp32: the loss
    return (error * valid).sum() / valid.sum()


def integrate(velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, num_steps: int) -> Tensor:
    """Follow the velocity from noise (t = 1) to actions (t = 0) by Euler steps.

    Args:
        velocity: maps x_t (B, L, A) and t (B,) to dx_t/dt (B, L, A).
        noise: (B, L, A).
    Returns:
        (B, L, A), fp32.
    """
    x = noise.float()  # fp32: ten small steps would drown in bf16's rounding
    for step in range(num_steps):
        t = torch.full((x.shape[0],), 1 - step / num_steps, device=x.device)  # (B,)
        x = x - velocity(x, t).float() / num_steps
    return x
