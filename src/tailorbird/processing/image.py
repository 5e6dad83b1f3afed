"""From camera frames to the square picture that the vision tower reads."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tailorbird.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """Crop, resize, scale.

    size: side of the result, in px.
    crop: top, left, height and width of the part to keep, as fractions of the frame.

    The result of `shrink` is uint8, so that frames can be cached at their final size and yet reach the model
    exactly as a live camera's do.
    """

    size: int
    crop: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        top, left, height, width = self.crop
        if (
            self.size < 1
            or min(self.crop) < 0
            or min(height, width) <= 0
            or max(top + height, left + width) > 1
        ):
            raise ConfigError(f"{self} does not describe a picture: the crop must lie inside the frame")

    def shrink(self, frames: Tensor) -> Tensor:
        """Cut and resize (bilinear, antialiased) to uint8.

        Args:
            frames: (..., H, W, 3) uint8, any size.
        Returns:
            (..., size, size, 3) uint8.
        """
        if frames.dtype != torch.uint8 or frames.ndim < 3 or frames.shape[-1] != 3:
            raise DataError(f"a frame is (H, W, 3) uint8, got {tuple(frames.shape)} {frames.dtype}")
        high, wide = frames.shape[-3:-1]
        top, left, height, width = self.crop
        rows = slice(round(top * high), round((top + height) * high))
        columns = slice(round(left * wide), round((left + width) * wide))
        part = frames[..., rows, columns, :]  # (..., h, w, 3)
        if 0 in part.shape[-3:-1]:
            raise DataError(f"of a frame of {wide} x {high} px the crop {self.crop} leaves nothing")
        if part.shape[-3:-1] == (self.size, self.size):
            return part
        pixels = part.reshape(-1, *part.shape[-3:]).movedim(-1, 1).float()  # (N, 3, h, w)
        pixels = F.interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)
        pixels = pixels.round().clamp(0, 255).to(torch.uint8).movedim(1, -1)  # (N, size, size, 3)
        return pixels.reshape(*frames.shape[:-3], self.size, self.size, 3)

    @staticmethod
    def scale(frames: Tensor) -> Tensor:
        """(..., size, size, 3) uint8 to (..., 3, size, size) in [-1, 1]."""
        return frames.movedim(-1, -3).float() / 127.5 - 1
