"""Tiles against transformers' own image processors: equal bytes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers.image_utils import SizeDict
from transformers.models.smolvlm.image_processing_pil_smolvlm import (
    SmolVLMImageProcessorPil,
    get_resize_output_image_size,
)

from tailorbird.processing.picture import open_picture
from tailorbird.processing.tiles import TileSpec

pytestmark = pytest.mark.parity

SIZES = [  # height, width
    (24, 24),
    (48, 64),
    (64, 48),
    (37, 91),
    (91, 37),
    (20, 100),
    (100, 20),
    (128, 128),
    (129, 127),
    (1, 1),
    (1, 50),
    (50, 1),
    (2, 300),
    (300, 200),
]


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def reference(spec: TileSpec) -> SmolVLMImageProcessorPil:
    return SmolVLMImageProcessorPil(
        size={"longest_edge": spec.longest_edge},
        max_image_size={"longest_edge": spec.tile},
        do_image_splitting=spec.split,
        return_row_col_info=True,
    )


class Ruler(SmolVLMImageProcessorPil):
    """The reference with its own sizes and without its pixels: thousands of shapes take no time."""

    def resize(self, image: NDArray[np.uint8], size: SizeDict, **kwargs: object) -> NDArray[np.uint8]:
        shape = (size.height, size.width)
        if size.longest_edge:
            shape = get_resize_output_image_size(image, resolution_max_side=size.longest_edge)
        return np.broadcast_to(np.uint8(0), (3, *shape))


@pytest.mark.parametrize("split", [True, False], ids=["split", "whole"])
@pytest.mark.parametrize(("longest_edge", "tile"), [(128, 32), (100, 36), (32, 32), (20, 32), (96, 41)])
def test_exact_tiles_are_the_references_bytes(longest_edge: int, tile: int, split: bool) -> None:
    spec = TileSpec(longest_edge=longest_edge, tile=tile, split=split)
    for i, (height, width) in enumerate(SIZES):
        picture = noise(height, width, seed=i)
        expected = reference(spec)(picture, return_tensors="pt")
        layout = spec.layout(height, width)
        assert ([[layout.rows]], [[layout.cols]]) == (expected["rows"], expected["cols"])
        tiles = spec.exact(open_picture(picture))
        assert tiles.dtype == torch.float32
        assert len(tiles) == layout.num_tiles
        assert torch.equal(tiles, expected["pixel_values"][0]), (height, width)


def test_the_released_sizes_give_the_references_bytes() -> None:
    for spec in (TileSpec(), TileSpec(longest_edge=1536, tile=384)):
        picture = noise(97, 214)
        expected = reference(spec)(picture, return_tensors="pt").pixel_values[0]
        assert torch.equal(spec.exact(open_picture(picture)), expected)


@pytest.mark.parametrize(
    ("longest_edge", "tile"), [(2048, 512), (1536, 384), (5000, 512), (4097, 100), (700, 512)]
)
def test_the_layout_is_the_references_for_every_shape(longest_edge: int, tile: int) -> None:
    spec = TileSpec(longest_edge=longest_edge, tile=tile)
    rng = np.random.default_rng(0)
    shapes = [*SIZES, (256, 256), (768, 1024), (480, 640), (1080, 1920), (400, 2000), (4000, 6000)]
    shapes += [tuple(pair) for pair in rng.integers(1, 3000, (300, 2)).tolist()]
    ruler = Ruler()
    for height, width in shapes:
        resized = ruler.resize(
            np.broadcast_to(np.uint8(0), (3, height, width)), SizeDict(longest_edge=longest_edge)
        )
        grid = ruler.resize_for_vision_encoder(resized, tile)
        _, rows, cols = ruler.split_images(grid, {"longest_edge": tile})
        layout = spec.layout(height, width)
        assert (layout.resized, layout.grid) == (resized.shape[1:], grid.shape[1:]), (height, width)
        assert (layout.rows, layout.cols) == (rows, cols), (height, width)


@pytest.mark.parametrize(
    ("shape", "tiles"),
    [
        ((256, 256), 17),
        ((768, 1024), 13),
        ((480, 640), 13),
        ((384, 512), 13),
        ((1080, 1920), 13),
        ((400, 2000), 5),
    ],
)
def test_the_published_tile_counts_hold(shape: tuple[int, int], tiles: int) -> None:
    assert TileSpec().layout(*shape).num_tiles == tiles
    assert TileSpec(split=False).layout(*shape).num_tiles == 1
    assert TileSpec(longest_edge=512).layout(*shape).num_tiles == 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1", "YCbCr"])
def test_pictures_of_every_mode_are_converted_as_the_reference_does(mode: str, tmp_path: Path) -> None:
    spec = TileSpec(longest_edge=40, tile=40, split=False)
    picture = noise(30, 40).convert(mode)
    if mode == "RGBA":
        picture.putalpha(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40).astype(np.uint8)))
    expected = reference(spec)(picture, return_tensors="pt").pixel_values[0]
    assert torch.equal(spec.exact(open_picture(picture)), expected)

    file = tmp_path / f"picture.{'tiff' if mode in ('CMYK', 'YCbCr', 'LA') else 'png'}"
    picture.save(file)
    expected = reference(spec)(str(file), return_tensors="pt").pixel_values[0]
    assert torch.equal(spec.exact(open_picture(file)), expected)
    assert torch.equal(spec.exact(open_picture(file.read_bytes())), expected)


def test_a_photo_is_turned_as_its_exif_tag_says(tmp_path: Path) -> None:
    spec = TileSpec(longest_edge=64, tile=32)
    for tag in range(1, 9):
        picture = noise(30, 40)
        exif = picture.getexif()
        exif[0x0112] = tag
        picture.save(tmp_path / "photo.png", exif=exif)
        expected = reference(spec)(str(tmp_path / "photo.png"), return_tensors="pt").pixel_values[0]
        assert torch.equal(spec.exact(open_picture(tmp_path / "photo.png")), expected), tag
