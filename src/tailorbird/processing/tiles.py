"""From a picture of any size to the square tiles that SmolVLM reads: one spec, two interpreters."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tailorbird.errors import ConfigError, DataError
from tailorbird.processing.resample import lanczos

# uint8 to [-1, 1] in the reference's steps and precisions: 1/255 in double, mean and deviation 0.5 in single.
LEVELS = ((np.arange(256) * (1 / 255)).astype(np.float32) - np.float32(0.5)) / np.float32(0.5)
LARGEST_PX = 4096  # the reference shrinks what would be longer after the first resize


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What becomes of one picture. Sizes are (height, width) in px.

    resized: after the first resize. grid: what is cut into tiles. rows, cols: 0 if it is one tile.
    """

    resized: tuple[int, int]
    grid: tuple[int, int]
    rows: int
    cols: int

    @property
    def num_tiles(self) -> int:
        """The tiles, and one more for the whole picture if it was cut."""
        return self.rows * self.cols + 1


@dataclass(frozen=True, kw_only=True)
class TileSpec:
    """SmolVLM's image processor as data. Defaults are SmolVLM2 256M and 500M.

    longest_edge: the long side of every picture becomes this, in px; small pictures are enlarged.
    tile: side of a tile, the image size of the vision tower, in px.
    split: cut into tiles and add the whole; else the whole only.
    upscale: False leaves a picture that is smaller than longest_edge at its size until it is squeezed into
        tiles. The release knows no such thing: other pixels, fewer tiles, less time.
    """

    longest_edge: int = 2048
    tile: int = 512
    split: bool = True
    upscale: bool = True

    def __post_init__(self) -> None:
        if self.longest_edge < 1 or self.tile < 1:
            raise ConfigError(f"{self} does not describe tiles: sizes must be at least 1 px")

    def layout(self, height: int, width: int) -> Layout:
        """Sizes as the reference computes them: short sides by int(), then up to even."""
        edge = self.longest_edge if self.upscale else min(self.longest_edge, max(height, width))
        resized = _below(*_to_longest(height, width, edge), LARGEST_PX)
        if not self.split:
            return Layout(resized=resized, grid=(self.tile, self.tile), rows=0, cols=0)
        grid = self._whole_tiles(*resized)
        cuts = grid[0] // self.tile, grid[1] // self.tile
        rows, cols = cuts if cuts != (1, 1) else (0, 0)
        return Layout(resized=resized, grid=grid, rows=rows, cols=cols)

    def exact(self, picture: Tensor) -> Tensor:
        """The reference's own pixels, by Pillow.

        Args:
            picture: (H, W, 3) uint8.
        Returns:
            (num_tiles, 3, tile, tile) in [-1, 1]: the cuts row by row, then the whole picture.
        Source: SmolVLMImageProcessorPil, transformers 5.23; equal bytes in tests/parity/test_pixels.py.
        """
        return torch.from_numpy(LEVELS[self.exact_levels(picture).numpy()])

    def exact_levels(self, picture: Tensor) -> Tensor:
        """As `exact`, but not yet scaled: (num_tiles, 3, tile, tile) uint8, a quarter of the memory."""
        layout = self.layout(*picture.shape[:2])
        image = Image.fromarray(picture.cpu().numpy())
        for height, width in (layout.resized, layout.grid):
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        parts = [np.asarray(image)]
        if layout.rows:
            cuts = parts[0].reshape(layout.rows, self.tile, layout.cols, self.tile, 3).swapaxes(1, 2)
            whole = image.resize((self.tile, self.tile), Image.Resampling.LANCZOS)
            parts = [*cuts.reshape(-1, self.tile, self.tile, 3), np.asarray(whole)]
        return torch.from_numpy(np.stack(parts).transpose(0, 3, 1, 2))  # (num_tiles, 3, tile, tile)

    def fast(
        self, frames: Tensor, dtype: torch.dtype = torch.float32, *, out: Tensor | None = None
    ) -> Tensor:
        """Nearly the same pixels by tensor operations, on the device where the frames are.

        Args:
            frames: (B, H, W, 3) or (B, 3, H, W) uint8, all of one size.
            out: the caller's memory for the result, which stays the caller's: on a CPU, new memory of this
                size costs as much time as the pixels. Its type counts, dtype does not.
        Returns:
            (B, num_tiles, 3, tile, tile) in [-1, 1]: `out`, if there is one.
        Raises:
            DataError: frames, or out, are of another form.
        Tier: tolerance, at most 2 of 255 levels from `exact` (tests/processing/test_tiles.py).
        """
        frames = _channels_first(frames)
        layout = self.layout(*frames.shape[-2:])
        shape = (len(frames), layout.num_tiles, 3, self.tile, self.tile)
        tiles = torch.empty(shape, dtype=dtype, device=frames.device) if out is None else out
        if tiles.shape != shape or tiles.device != frames.device or not tiles.is_floating_point():
            raise DataError(
                f"out must be {shape}, floating point, on {frames.device} for these frames, got "
                f"{tuple(tiles.shape)} {tiles.dtype} on {tiles.device}: leave it out, or make another"
            )
        if frames.device.type != "cpu":
            self._fill(tiles, frames, layout)
            return tiles
        mode = torch.is_inference_mode_enabled()  # which other threads do not know

        def fill(i: int) -> None:
            with torch.inference_mode(mode):
                self._fill(tiles[i : i + 1], frames[i : i + 1], layout)

        # the kernel uses one core
        with ThreadPoolExecutor(min(torch.get_num_threads(), len(frames))) as pool:
            list(pool.map(fill, range(len(frames))))
        return tiles

    def fast_levels(self, frames: Tensor) -> Tensor:
        """As `fast`, but not yet scaled: (B, num_tiles, 3, tile, tile) uint8."""
        frames = _channels_first(frames)
        return torch.stack(list(self._parts(frames, self.layout(*frames.shape[-2:]))), 1)

    def _fill(self, tiles: Tensor, frames: Tensor, layout: Layout) -> None:
        """frames (B, 3, H, W) uint8 into tiles (B, num_tiles, 3, tile, tile)."""
        for i, part in enumerate(self._parts(frames, layout)):  # one by one: scaled while it is in the cache
            tiles[:, i].copy_(part).mul_(2 / 255).sub_(1)

    def _parts(self, frames: Tensor, layout: Layout) -> Iterator[Tensor]:
        """The tiles of (B, 3, H, W) frames in order, each (B, 3, tile, tile) uint8."""
        grid = lanczos(lanczos(frames, layout.resized), layout.grid)  # (B, 3, height, width)
        whole = lanczos(grid, (self.tile, self.tile)) if layout.rows else grid
        if layout.rows:
            cuts = grid.unflatten(3, (layout.cols, self.tile)).unflatten(2, (layout.rows, self.tile))
            for row in range(layout.rows):
                for col in range(layout.cols):
                    yield cuts[:, :, row, :, col]
        yield whole

    def _whole_tiles(self, height: int, width: int) -> tuple[int, int]:
        """The longer side is rounded up first, the shorter one from what the aspect then makes of it."""
        aspect = width / height
        if width >= height:
            width = self._up(width)
            return self._up(int(width / aspect)), width
        height = self._up(height)
        return height, self._up(int(height * aspect))

    def _up(self, length: int) -> int:
        return math.ceil(length / self.tile) * self.tile


def _channels_first(frames: Tensor) -> Tensor:
    """(B, 3, H, W)"""
    if frames.dtype != torch.uint8 or frames.ndim != 4 or 3 not in (frames.shape[-1], frames.shape[1]):
        raise DataError(
            f"frames are (B, H, W, 3) or (B, 3, H, W) uint8, got {tuple(frames.shape)} {frames.dtype}"
        )
    return frames.movedim(-1, 1) if frames.shape[-1] == 3 else frames


def _to_longest(height: int, width: int, edge: int) -> tuple[int, int]:
    aspect = width / height
    if width >= height:
        short = int(edge / aspect)
        return max(short + short % 2, 1), edge
    short = int(edge * aspect)
    return edge, max(short + short % 2, 1)


def _below(height: int, width: int, edge: int) -> tuple[int, int]:
    aspect = width / height
    if width >= height and width > edge:
        return max(int(edge / aspect), 1), edge
    if height > width and height > edge:
        return edge, max(int(edge * aspect), 1)
    return height, width
