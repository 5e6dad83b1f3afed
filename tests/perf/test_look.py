"""What `inspect` shows is what the model gets."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from released import CFG, make_processor
from tailorbird.errors import DataError
from tailorbird.perf.look import GAP, LABEL, draw_sheet, look, shorten, tables
from tailorbird.processing.processor import Processor


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Red on the left, blue on the right."""
    pixels = np.zeros((30, 30, 3), np.uint8)
    pixels[:, :15, 0], pixels[:, 15:, 2] = 255, 255
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def processor() -> Processor:
    return make_processor()


def test_a_look_counts_what_the_model_reads(processor: Processor, photo: Path) -> None:
    seen = look(processor, photo, "which colours?")
    row = processor.row(
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "path": str(photo)},
                    {"type": "text", "text": "which colours?"},
                ],
            }
        ]
    )
    assert sum(seen.counts.values()) == len(row.tokens)
    assert seen.counts["image"] == 5 * CFG.tokens_per_image
    assert (seen.size, seen.layout.rows, seen.layout.cols, len(seen.tiles)) == ((30, 30), 2, 2, 5)
    assert all(ms > 0 for ms in seen.cost_ms.values())


def test_the_tables_name_sizes_tokens_stages_and_the_prompt(processor: Processor, photo: Path) -> None:
    console = Console(width=400, record=True)
    for part in tables(look(processor, photo, "which?"), processor.tiles):
        console.print(part, markup=False)
    printed = console.export_text()
    for words in (
        "30 x 30",
        "74 x 74",
        "2 x 2 tiles and the whole of 37 px",
        "marker",
        "cut into tiles, exact",
    ):
        assert words in printed
    assert f"<row_1_col_2><image>*{CFG.tokens_per_image}" in printed
    assert printed.rstrip().endswith("Assistant:")


def test_runs_of_image_tokens_are_counted_and_nothing_else_changes() -> None:
    assert shorten("a<image><image><image>b<image>c") == "a<image>*3b<image>c"


def test_the_sheet_shows_every_tile_at_its_place(processor: Processor, photo: Path, tmp_path: Path) -> None:
    seen = look(processor, photo, "which?")
    draw_sheet(seen, tmp_path / "tiles.png")
    with Image.open(tmp_path / "tiles.png") as drawn:
        sheet = np.asarray(drawn).astype(int)
    side = (sheet.shape[1] - GAP) // 3 - GAP
    middle = side // 2

    def colour(row: int, col: int) -> tuple[int, ...]:
        top, left = GAP + row * (side + LABEL + GAP) + LABEL, GAP + col * (side + GAP)
        return tuple(sheet[top + middle, left + middle])

    assert colour(0, 0) == colour(1, 0) == (255, 0, 0)
    assert colour(0, 1) == colour(1, 1) == (0, 0, 255)
    assert colour(1, 2) == (255, 255, 255), "nothing lies under the whole picture"


def test_a_picture_in_one_tile_has_a_sheet_too(photo: Path, tmp_path: Path) -> None:
    processor = make_processor()
    whole = replace(processor, tiles=replace(processor.tiles, split=False))
    draw_sheet(look(whole, photo, "which?"), tmp_path / "tiles.png")
    with Image.open(tmp_path / "tiles.png") as sheet:
        assert sheet.size == (37 + 2 * GAP, 37 + LABEL + 2 * GAP)


def test_what_is_no_picture_is_refused(processor: Processor, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.png cannot be read"):
        look(processor, tmp_path / "none.png", "?")
