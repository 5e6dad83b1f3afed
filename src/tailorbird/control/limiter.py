"""Follow a target within bounds of position, step and change of step, without overshoot at the bounds."""

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]  # (A,)
Mask = NDArray[np.bool_]  # (A,)
FREE = 1e100  # stands for "no bound": infinity times zero is not a number


class Limiter:
    """Moves a point per dimension, once a tick.

    Units are those of the position, per tick: `step` bounds how far the point moves, `bend` by how much that
    changes from one tick to the next. Every step is short enough that the point can still brake before the
    bounds of its position, so these three hold whatever the targets are. A target that keeps within them is
    followed exactly. One that does not is caught up with at a speed from which the point can brake to the
    target's own, so it does not swing around it.

    Args:
        low, high, step, bend: (A,) each; infinite where there is no bound.
    """

    def __init__(self, low: Vector, high: Vector, step: Vector, bend: Vector) -> None:
        self.low, self.high = low, high
        self._step, self._bend = np.minimum(step, FREE), np.minimum(bend, FREE)
        self.rest(np.zeros_like(low))

    def rest(self, position: Vector) -> None:
        """Be at a position, (A,), without speed. Outside the bounds, the point then only moves inwards."""
        self.position = position
        self._speed = np.zeros_like(position)
        self._target = position  # of the last tick

    def move(self, target: Vector, brake: Mask) -> tuple[Mask, Mask]:
        """Go one tick towards a target within the bounds, or brake where told so.

        Returns:
            (A,) each: where `step` kept the point from the target, and where `bend` did.
        """
        x, speed, bend = self.position, self._speed, self._bend
        behind = self._target - x
        drift = target - self._target
        caught_up = x + drift + np.sign(behind) * _last_step(np.abs(behind), bend)
        aim = np.where(np.abs(behind) <= bend, target, caught_up)
        aim = np.where(brake, x, aim)
        slow = np.clip(aim, x - self._step, x + self._step)
        up = np.minimum(speed + bend, _last_step(np.maximum(self.high - x, 0), bend))
        down = np.maximum(speed - bend, -_last_step(np.maximum(x - self.low, 0), bend))
        reached = np.clip(slow, x + down, x + up)
        reached = np.clip(
            reached, np.minimum(self.low, x), np.maximum(self.high, x)
        )  # rounding must not pass
        self.position, self._speed = reached, reached - x
        self._target = np.where(brake, reached, target)
        return differ(slow, aim) & ~brake, (differ(reached, slow) | differ(aim, target)) & ~brake


def _last_step(gap: Vector, bend: Vector) -> Vector:
    """The longest step, (A,), after which one still stops within the gap by taking off `bend` each tick.

    A step s with n * bend <= s < (n + 1) * bend goes s + (s - bend) + .. + (s - n * bend) in all.
    """
    gap = np.minimum(gap, FREE)
    n = np.floor((np.sqrt(1 + 8 * gap / bend) - 1) / 2)
    return gap / (n + 1) + n * bend / 2


def differ(a: Vector, b: Vector) -> Mask:
    """Where two positions differ by more than the rounding of float32, in which actions come."""
    return np.abs(a - b) > 1e-6 * np.maximum(np.abs(a), np.abs(b)) + 1e-9
