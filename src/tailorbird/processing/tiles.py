"""From a picture of any size to the square tiles that SmolVLM reads: one spec, two interpreters."""

import math
from dataclasses import dataclass

from tailorbird.errors import ConfigError

LARGEST_PX = 4096  # the reference shrinks what would be longer after the first resize


@dataclass(frozen=True, kw_only=True)
class Plan:
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

    def plan(self, height: int, width: int) -> Plan:
        """Sizes as the reference computes them: short sides by int(), then up to even."""
        edge = self.longest_edge if self.upscale else min(self.longest_edge, max(height, width))
        resized = _below(*_to_longest(height, width, edge), LARGEST_PX)
        if not self.split:
            return Plan(resized=resized, grid=(self.tile, self.tile), rows=0, cols=0)
        grid = self._whole_tiles(*resized)
        rows, cols = grid[0] // self.tile, grid[1] // self.tile
        return (
            Plan(resized=resized, grid=grid, rows=rows, cols=cols)
            if rows * cols > 1
            else Plan(resized=resized, grid=grid, rows=0, cols=0)
        )

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
