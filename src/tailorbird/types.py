"""What crosses the borders between processing, data, model and training. Shapes are part of the type."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A batch of observations as a VLA reads them."""

    pixels: Tensor  # (B, N, 3, image_size, image_size) in [-1, 1], N cameras
    ids: Tensor  # (B, T) token ids of the instruction
    ids_valid: Tensor  # (B, T) bool, False at padding
    state: Tensor  # (B, state_dim), normalised


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Observations with the actions that followed them."""

    inputs: Inputs
    actions: Tensor  # (B, L, A), normalised; the last action of the episode fills what runs past its end
    valid: Tensor  # (B, L) bool, False past the end of the episode
