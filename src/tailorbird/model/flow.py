"""Flow matching: the path from noise to actions, its loss, and how it is followed."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tailorbird.model.config import Solver

Velocity = Callable[[Tensor, Tensor], Tensor]  # x_t (B, L, A) and t (B,) to dx_t/dt (B, L, A)


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

    lerobot's SmolVLA looks for the mask under a name that its own loader does not use, and so also learns the
    repeated last action; with every action valid the losses are equal (tests/parity/test_smolvla.py).

    Args:
        velocity, target: (B, L, A).
        valid: (B, L), False where the chunk runs past the end of its episode.
    """
    error = (velocity.float() - target).square().mean(-1)  # (B, L); fp32: the loss
    return (error * valid).sum() / valid.sum()


def trajectory(
    velocity: Velocity, noise: Tensor, num_steps: int, solver: Solver = "euler"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Follow the velocity from noise (t = 1) to actions (t = 0), in steps of 1 / num_steps.

    Euler's error falls with the step, calling the velocity once a step; that of Heun and of the midpoint rule
    with its square, calling it twice. Heun's last call is at t = 0, which training comes close to but not at.

    Args:
        noise: (B, L, A).
    Yields:
        After each step the place it led to and the velocity that it took, (B, L, A) both, fp32.
    """

    def at(x: Tensor, step: float) -> Tensor:
        t = torch.full((x.shape[0],), 1 - step / num_steps, device=x.device)  # (B,)
        return velocity(x, t).float()

    x = noise.float()  # fp32: ten small steps would drown in bf16's rounding
    for step in range(num_steps):
        v = at(x, step)
        if solver == "heun":
            v = (v + at(x - v / num_steps, step + 1)) / 2
        elif solver == "midpoint":
            v = at(x - v / (2 * num_steps), step + 0.5)
        x = x - v / num_steps
        yield x, v


def integrate(velocity: Velocity, noise: Tensor, num_steps: int, solver: Solver = "euler") -> Tensor:
    """Where `trajectory` ends: (B, L, A), fp32."""
    places = [x for x, _ in trajectory(velocity, noise, num_steps, solver)]
    return places[-1]
