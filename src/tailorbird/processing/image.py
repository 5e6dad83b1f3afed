"""From camera frames to the square picture that the vision tower reads, in one of two ways."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tailorbird.errors import ConfigError, DataError


def _require_frames(frames: Tensor) -> None:
    if frames.dtype != torch.uint8 or frames.ndim < 3 or frames.shape[-1] != 3 or not frames.numel():
        raise DataError(f"a frame is (H, W, 3) uint8, got {tuple(frames.shape)} {frames.dtype}")


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
        _require_frames(frames)
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


@dataclass(frozen=True, kw_only=True)
class Letterbox:
    """SmolVLA's picture: the whole frame in its proportions, black on the left and on top of it.

    size: side of the result, in px.

    Resizing rounds to no integers, so there is nothing smaller to cache than the frame itself. Sizes are cut
    to whole pixels, and bilinear weights take no wider part of a large frame: both are lerobot's (see
    tests/parity/test_lerobot_policy.py), and a policy sees other pictures without them.
    """

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"{self} does not describe a picture: its side is at least 1 px")

    @staticmethod
    def shrink(frames: Tensor) -> Tensor:
        """(..., H, W, 3) uint8, any size, as it is."""
        _require_frames(frames)
        return frames

    def scale(self, frames: Tensor) -> Tensor:
        """(..., H, W, 3) uint8 to (..., 3, size, size) in [-1, 1]."""
        _require_frames(frames)
        high, wide = frames.shape[-3:-1]
        ratio = max(wide / self.size, high / self.size)
        height, width = int(high / ratio), int(wide / ratio)
        if not height or not width:
            raise DataError(
                f"a frame of {wide} x {high} px is too narrow: nothing of it is left in {self.size} x "
                f"{self.size} px. Crop it"
            )
        pixels = frames.reshape(-1, high, wide, 3).movedim(-1, 1).float().div_(255)  # (N, 3, H, W)
        pixels = F.interpolate(pixels, (height, width), mode="bilinear")  # (N, 3, h, w)
        pixels = F.pad(pixels, (self.size - width, 0, self.size - height, 0))  # (N, 3, size, size)
        return pixels.mul_(2).sub_(1).reshape(*frames.shape[:-3], 3, self.size, self.size)
