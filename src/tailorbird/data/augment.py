"""Random changes of training pictures."""

import torch
from torch import Tensor

from tailorbird.data.config import Augment


def change(frames: Tensor, cfg: Augment, generator: torch.Generator) -> Tensor:
    """Change pictures at random, each sample its own way, all cameras of a sample alike.

    Args:
        frames: (B, N, H, W, 3) uint8.
    Returns:
        The same shape and type.
    """
    num, high, wide = len(frames), *frames.shape[2:4]
    if cfg.shift_px:
        offsets = torch.randint(-cfg.shift_px, cfg.shift_px + 1, (2, num, 1), generator=generator)
        rows = (torch.arange(high) + offsets[0]).clamp(0, high - 1)  # (B, H)
        columns = (torch.arange(wide) + offsets[1]).clamp(0, wide - 1)  # (B, W)
        sample = torch.arange(num)[:, None, None, None]
        camera = torch.arange(frames.shape[1])[:, None, None]
        frames = frames[sample, camera, rows[:, None, :, None], columns[:, None, None, :]]
    if cfg.brightness or cfg.contrast:
        spread = torch.tensor([cfg.contrast, cfg.brightness])
        factors = 1 + spread[:, None] * (2 * torch.rand(2, num, generator=generator) - 1)  # (2, B)
        contrast, brightness = factors[..., None, None, None, None]  # (B, 1, 1, 1, 1) both
        pixels = ((frames.float() - 127.5) * contrast + 127.5) * brightness
        frames = pixels.round().clamp(0, 255).to(torch.uint8)
    return frames
