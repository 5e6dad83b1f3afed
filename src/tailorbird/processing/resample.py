"""Pillow's LANCZOS on tensors, on any device: uint8 in, uint8 out, rounded between the two passes."""

import functools
from importlib.metadata import version

import torch
import torch.nn.functional as F
from torch import Tensor

LOBES = 3


def lanczos(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize with antialiasing.

    On a CPU by PyTorch's own kernel where the version has it (at most 2 levels from Pillow), elsewhere by two
    products with weight matrices (at most 1); both are held against Pillow by tests/processing/test_tiles.py.

    Args:
        frames: (B, 3, H, W) uint8.
        size: height and width of the result, in px.
    Returns:
        (B, 3, height, width) uint8.
    """
    height, width = size
    if frames.shape[-2:] == size:
        return frames
    if rows_first(frames.shape[-2], frames.shape[-1], height, width):
        frames = _resized(frames, (height, frames.shape[-1]))
    return _resized(frames, size)


def rows_first(old_height: int, old_width: int, height: int, width: int) -> bool:
    """Which pass comes first decides where values are cut to 0..255: tens of levels on hard edges.

    Always the columns until Pillow 13, which begins with the rows where the height loses more than twice the
    px of the width (python-pillow/Pillow#9549). The installed version is followed, as the exact path does.
    """
    return pillow_major() >= 13 and old_height - height > max(2 * (old_width - width), 0)


@functools.cache
def pillow_major() -> int:
    return int(version("pillow").split(".")[0])


def _resized(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Columns first."""
    if frames.device.type == "cpu" and has_kernel():
        return F.interpolate(frames, size, mode="lanczos", antialias=True)
    return by_products(frames, size)


@functools.cache
def has_kernel() -> bool:
    """PyTorch 2.11 knows no Lanczos, 2.13 does, for uint8 on a CPU."""
    try:
        F.interpolate(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), (3, 3), mode="lanczos", antialias=True)
    except (NotImplementedError, RuntimeError, ValueError):
        return False
    return True


def by_products(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, 3, H, W) uint8 by weight matrices: columns, round, rows, round."""
    resized = frames.new_empty(*frames.shape[:2], *size)
    for frame, place in zip(frames, resized, strict=True):  # a whole video in fp64 would fill a device
        place.copy_(_product(frame, size))
    return resized


def _product(frame: Tensor, size: tuple[int, int]) -> Tensor:
    """frame: (3, H, W) uint8."""
    height, width = size
    if frame.shape[-1] != width:
        columns = weights(frame.shape[-1], width, frame.device)
        frame = _rounded(frame.to(columns.dtype) @ columns.T)
    if frame.shape[-2] != height:
        rows = weights(frame.shape[-2], height, frame.device)
        frame = _rounded(rows @ frame.to(rows.dtype))
    return frame


def _rounded(levels: Tensor) -> Tensor:
    return levels.add_(0.5).floor_().clamp_(0, 255).to(torch.uint8)


@functools.lru_cache(maxsize=16)
def weights(num_in: int, num_out: int, device: torch.device) -> Tensor:
    """How much of each of num_in pixels goes into each of num_out, (num_out, num_in).

    In fp64, which neither autocast nor a setting for faster fp32 products (TF32, bf16) touches: each of them
    is off by levels. MPS has no fp64 and gets fp32: there autocast must be off.

    The window is cut at the border and the rest adds up to one again, as in Pillow's Resample.c.
    """
    scale = num_in / num_out
    stretch = max(scale, 1.0)
    centre = (torch.arange(num_out, dtype=torch.float64)[:, None] + 0.5) * scale  # (num_out, 1)
    pixel = torch.arange(num_in, dtype=torch.float64)  # (num_in,)
    first = (centre - LOBES * stretch + 0.5).long().clamp(min=0)
    last = (centre + LOBES * stretch + 0.5).long().clamp(max=num_in)
    x = (pixel + 0.5 - centre) / stretch  # (num_out, num_in)
    seen = (pixel >= first) & (pixel < last) & (x >= -LOBES) & (x < LOBES)
    window = torch.where(seen, torch.sinc(x) * torch.sinc(x / LOBES), 0.0)
    exact = window / window.sum(1, keepdim=True)
    return exact.to(device, torch.float32 if device.type == "mps" else torch.float64)
