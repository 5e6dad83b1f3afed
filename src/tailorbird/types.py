"""What crosses the borders between processing, data, model and training. Shapes are part of the type."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tailorbird.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A batch of observations as a VLA reads them."""

    pixels: Tensor  # (B, N, 3, image_size, image_size) in [-1, 1], N cameras
    ids: Tensor  # (B, T) token ids of the instruction
    ids_valid: Tensor  # (B, T) bool, False at padding
    state: Tensor  # (B, state_dim), normalised

    def to(self, device: torch.device | str) -> "Inputs":
        return replace(self, **{name: value.to(device) for name, value in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """A batch of conversations as a VLM reads them."""

    ids: Tensor  # (B, T) token ids
    valid: Tensor  # (B, T) bool, False at padding
    learned: Tensor  # (B, T) bool, True at the words of the assistant and at the end of its turns
    pixels: Tensor | None  # (N, 3, tile, tile) in [-1, 1]: all tiles of row 0, then of row 1, ...
    tiles: tuple[int, ...]  # tiles of each row; they sum to N

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Prompts":
        """Move the tensors; `dtype` is that of the pixels."""
        pixels = None if self.pixels is None else self.pixels.to(device, dtype)
        ids, valid, learned = (part.to(device) for part in (self.ids, self.valid, self.learned))
        return replace(self, ids=ids, valid=valid, learned=learned, pixels=pixels)

    def padded(self) -> tuple[Tensor, Tensor]:
        """The tiles in the reference's layout: pixel_values and pixel_attention_mask.

        Returns:
            (B, N, 3, tile, tile) and (B, N, tile, tile) int64, N the most tiles of a row; both are zero where
            a row has fewer.
        """
        if self.pixels is None:
            raise DataError("these prompts have no pictures: there is nothing to lay out")
        shape = (len(self.tiles), max(self.tiles))
        values = self.pixels.new_zeros(*shape, *self.pixels.shape[1:])
        mask = torch.zeros(*shape, *self.pixels.shape[2:], dtype=torch.int64, device=self.pixels.device)
        for i, part in enumerate(self.pixels.split(list(self.tiles))):
            values[i, : len(part)], mask[i, : len(part)] = part, 1
        return values, mask


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Observations with the actions that followed them."""

    inputs: Inputs
    actions: Tensor  # (B, L, A), normalised; the last action of the episode fills what runs past its end
    valid: Tensor  # (B, L) bool, False past the end of the episode

    def to(self, device: torch.device | str) -> "Batch":
        actions, valid = (part.to(device) for part in (self.actions, self.valid))
        return Batch(inputs=self.inputs.to(device), actions=actions, valid=valid)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Samples packed into rows, as a VLM learns from them."""

    ids: Tensor  # (B, T) token ids
    positions: Tensor  # (B, T), from 0 in each sample
    segment: Tensor  # (B, T) number of the sample within its row, -1 at padding
    learned: Tensor  # (B, T) bool, True at the tokens that are to be foretold from those before
    # (N, 3, tile, tile): all tiles of row 0, then of row 1, ...; in [-1, 1], or uint8 until `to` scales them
    pixels: Tensor | None
    tiles: tuple[int, ...]  # tiles of each row; they sum to N
    names: tuple[tuple[str, ...], ...]  # of the samples of each row
    sources: tuple[tuple[str, ...], ...]  # theirs

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Rows":
        """Move the tensors; `dtype` is that of the pixels.

        Pixels travel as uint8, a quarter of the bytes, and become what the processor makes of them.
        """
        pixels = None if self.pixels is None else self.pixels.to(device)
        if pixels is not None and pixels.dtype == torch.uint8:
            pixels = pixels.float().div_(255).sub_(0.5).mul_(2)
        pixels = None if pixels is None else pixels.to(dtype=dtype)
        moved = {name: getattr(self, name).to(device) for name in ("ids", "positions", "segment", "learned")}
        return replace(self, pixels=pixels, **moved)
