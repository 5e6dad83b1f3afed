"""Flow matching: the path from noise to actions, its loss, and how it is followed."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tailorbird.errors import ConfigError
from tailorbird.model.config import Solver

Velocity = Callable[[Tensor, Tensor], Tensor]  # x_t (B, L, A) and t (B,) or (B, L) to dx_t/dt (B, L, A)


class Guide(NamedTuple):
    """What a chunk is to agree with: actions of the one before, which a robot is still executing."""

    target: Tensor  # (B, L, A), normalised
    weight: Tensor  # (B, L), in [0, 1]; 1 for what is frozen and for nothing else, 0 where the chunk is free

    @property
    def frozen(self) -> Tensor:
        """The actions that will be executed before the chunk is there, (B, L) bool."""
        return self.weight == 1

    def to(self, device: torch.device) -> "Guide":
        return self._replace(target=self.target.to(device), weight=self.weight.to(device))


def by_action(t: Tensor) -> Tensor:
    """Times of chunks (B,) to (B, 1); those of their actions (B, L) are left as they are."""
    return t if t.dim() == 2 else t[:, None]


def interpolate(actions: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Point on the straight line from noise to actions, and the velocity along it.

    Convention: t = 1 is noise and t = 0 is data, as in the released SmolVLA weights.

    Args:
        actions: (B, L, A), normalised.
        noise: (B, L, A), standard normal.
        t: (B,), or (B, L) for each action its own, in [0, 1].
    Returns:
        x_t and dx_t/dt, both (B, L, A).
    Source: SmolVLA, arXiv:2506.01844; checked by tests/model/test_flow.py.
    """
    w = by_action(t)[..., None]  # (B, 1, 1) or (B, L, 1)
    return w * noise + (1 - w) * actions, noise - actions


def sample_time(num: int, generator: torch.Generator) -> Tensor:
    """Draw (num,) training times from Beta(1.5, 1), squeezed into [0.001, 1]: more often near the noise.

    The Beta(1.5, 1) distribution function is t^1.5, so a uniform draw to the power 2/3 has it exactly.
    """
    u = torch.rand(num, generator=generator, device=generator.device)
    return u ** (2 / 3) * 0.999 + 0.001


def flow_loss(velocity: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error of each action's values, summed over the actions that exist and were not given.

    lerobot's SmolVLA looks for the mask under a name that its own loader does not use, and so also learns the
    repeated last action; with every action valid the losses are equal (tests/parity/test_smolvla.py).

    Args:
        velocity, target: (B, L, A).
        valid: (B, L), False where the chunk runs past the end of its episode, and at what was given.
    """
    error = (velocity.float() - target).square().mean(-1)  # (B, L); fp32: the loss
    return (error * valid).sum()


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


def guided(velocity: Velocity, guide: Guide, limit: float) -> Velocity:
    """The velocity, turned so that the chunk it leads to agrees better with the guide's target.

    It moves x against the gradient of half the weighted squared distance between the target and x - t * v,
    the chunk that the velocity v points to. That gradient goes back through the network; in inference mode
    there is none.

    Args:
        limit: of the pull, which grows without bound at both ends of the path. As many as there are steps:
            less holds the frozen actions worse, more overshoots.

    Source: real-time chunking, arXiv:2506.07339, whose time is 1 - t; checked against
    closed forms and finite differences by tests/model/test_guidance.py.

    Raises:
        ConfigError: when called, if no gradient goes through the velocity.
    """

    def turned(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            v = velocity(x, t).float()
            if not v.requires_grad:
                raise ConfigError(
                    "guiding a chunk needs the gradient of the network, which this engine does not compute: "
                    "take the engine torch, or a policy trained with --train.max-delay"
                )
            end = x - t[:, None, None] * v  # (B, L, A)
            error = guide.weight[..., None] * (guide.target - end.detach())  # (B, L, A)
            (pull,) = torch.autograd.grad(end, x, error)
        # the paper's (1 - tau) / (tau * r^2), upside down: 0 at both ends instead of infinite
        inverse = t * (1 - t) / ((1 - t).square() + t.square())  # (B,)
        return v.detach() - pull / inverse.clamp_min(1 / limit)[:, None, None]

    return turned


def held(velocity: Velocity, frozen: Tensor) -> Velocity:
    """The velocity where some actions, frozen (B, L), are final already: they stay, and their time is 0.

    Source: training-time action conditioning, arXiv:2512.05964; the network must have learned with it.
    """

    def around(x: Tensor, t: Tensor) -> Tensor:
        v = velocity(x, by_action(t).masked_fill(frozen, 0)).float()
        return v.masked_fill(frozen[..., None], 0)

    return around
