"""Real-time chunking: what a robot is committed to, as the model's flow is guided by it."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tailorbird.errors import ConfigError, DataError
from tailorbird.infer.vla_openvino import CompiledVLA
from tailorbird.model.flow import Guide
from tailorbird.model.vla import VLA
from tailorbird.processing.pipeline import Pipeline
from tailorbird.wire import Committed, Observation


def guide_of(seen: Sequence[Observation], pipeline: Pipeline, chunk: int) -> Guide | None:
    """The guide for chunks of `chunk` actions; None when no robot is committed to anything.

    The chunk of a robot that is not, beside others that are, is free.

    Raises:
        DataError: committed actions have the wrong size or are not finite, or fewer than none are frozen.
    """
    if all(one.committed is None for one in seen):
        return None
    rows = [_row(one.committed, pipeline, chunk) for one in seen]
    target, weight = (torch.cat(parts) for parts in zip(*rows, strict=True))
    return Guide(target, weight)


def soft_mask(frozen: int, num: int, chunk: int) -> Tensor:
    """How much each action of a chunk has to agree with `num` committed ones, (chunk,).

    1 for those that are frozen, from there falling faster than exponentially, 0 behind the last.

    Source: the soft mask of arXiv:2506.07339, whose H - s is `num` here.
    """
    place = torch.arange(chunk)
    c = (num - place) / (num - frozen + 1)
    falling = c * torch.expm1(c) / torch.expm1(torch.ones(()))
    return torch.where(place < frozen, 1.0, falling).where(place < num, 0.0)


def require_guidance(model: VLA) -> None:
    """Raises ConfigError when a model can neither follow a gradient nor go on from given actions."""
    if isinstance(model, CompiledVLA) and not model.cfg.max_delay:
        raise ConfigError(
            "real-time chunking needs the gradient of the network, which the engine openvino does not "
            "compute: take the engine torch, or a policy trained with --train.max-delay"
        )


def _row(committed: Committed | None, pipeline: Pipeline, chunk: int) -> tuple[Tensor, Tensor]:
    """Target (1, L, action_dim) and weight (1, L) of one robot."""
    width = pipeline.action.width
    actions = np.zeros((0, width), np.float32) if committed is None else np.asarray(committed.actions)
    frozen = 0 if committed is None else committed.frozen
    if actions.ndim != 2 or actions.shape[1] != width or actions.dtype.kind not in "fiu":
        raise DataError(
            f"committed actions of {actions.dtype} {actions.shape}: the policy's have {width} values each, "
            f"so (n, {width}) numbers are needed"
        )
    with np.errstate(over="ignore"):  # of float64: infinite is refused below
        given = torch.from_numpy(actions[:chunk].astype(np.float32))[None]  # (1, n, A)
    num = given.shape[1]
    target = F.pad(pipeline.prepare_actions(given), (0, 0, 0, chunk - num))  # (1, L, action_dim)
    if frozen < 0 or not target.isfinite().all():
        raise DataError(
            f"committed actions must be finite, and {frozen=} of them at least 0: begin an episode anew, a "
            "chunk cannot go on from these"
        )
    return target, soft_mask(min(frozen, num), num, chunk)[None]  # (1, L)
