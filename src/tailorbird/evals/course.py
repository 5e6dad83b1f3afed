"""What came of some situations: the velocities that a policy followed and the actions they led to."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tailorbird.checkpoint.files import read_tensors, write_tensors
from tailorbird.errors import CheckpointError, DataError
from tailorbird.storage import new_file

FEW = 5  # calls of the network that count as the beginning


@dataclass(frozen=True, kw_only=True)
class Course:
    """What came of some situations and noises, on the CPU."""

    velocities: Tensor  # (K, B, L, A), each from where its own side had got to; K calls of the network
    actions: Tensor  # (B, L, A), physical units
    noise: Tensor  # (B, L, A)


@dataclass(frozen=True, kw_only=True)
class Distance:
    """Between two courses. Errors are of the velocity along the whole way, in normalised units.

    pcc: Pearson correlation of the velocities, or of the actions.
    """

    pcc_1_step: float
    pcc_5_steps: float
    pcc_full: float
    pcc_actions: float
    max_abs_error: float
    mean_abs_error: float
    max_action_error: float  # physical units
    mean_action_error: float


@contextmanager
def outputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Everything that a layer gives out in the block, in fp32 on the CPU."""
    found: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _, __, out: found.append(out.float().cpu()))
    try:
        yield found
    finally:
        handle.remove()


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, of all values. NaN where one side never varies, unless both are equal.

    As 1 - |u - v|^2 / 2 of the unit vectors: exact where it is close to 1.
    """
    if torch.equal(a, b):
        return 1.0
    u, v = ((x.double() - x.double().mean()).flatten() for x in (a, b))
    if not (u.norm() > 0 and v.norm() > 0):
        return math.nan
    return 1 - float((u / u.norm() - v / v.norm()).square().sum()) / 2


def compare(tested: Course, truth: Course) -> Distance:
    """Raises DataError when they are not of the same noises and number of steps."""
    ours, theirs = tested.velocities, truth.velocities
    if ours.shape != theirs.shape or not torch.equal(tested.noise, truth.noise):
        raise DataError(
            f"the two sides do not belong together: velocities of {tuple(ours.shape)} and "
            f"{tuple(theirs.shape)}, or other noises. Use the same --scenes, steps and solver for both"
        )
    error, action = (ours - theirs).abs(), (tested.actions - truth.actions).abs()
    return Distance(
        pcc_1_step=correlation(ours[:1], theirs[:1]),
        pcc_5_steps=correlation(ours[:FEW], theirs[:FEW]),
        pcc_full=correlation(ours, theirs),
        pcc_actions=correlation(tested.actions, truth.actions),
        max_abs_error=float(error.max()),
        mean_abs_error=float(error.mean()),
        max_action_error=float(action.max()),
        mean_action_error=float(action.mean()),
    )


def save_course(path: Path, course: Course) -> None:
    with new_file(path) as temporary:
        write_tensors(temporary, vars(course))


def load_course(path: Path) -> Course:
    """Raises CheckpointError when the file is missing or holds no course."""
    if not path.is_file():
        raise CheckpointError(f"--against {path}: no such file. Name one from --save, or reference, or fp32")
    try:
        return Course(**read_tensors(path))
    except TypeError:
        raise CheckpointError(
            f"{path} was not written by `tailorbird verify --save`: write it anew"
        ) from None
