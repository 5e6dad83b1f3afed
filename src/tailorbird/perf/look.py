"""What a model is given to see: tiles, tokens, the prompt, and what preparing them costs."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from rich.console import RenderableType
from rich.table import Table
from torch import Tensor

from tailorbird.errors import ConfigError
from tailorbird.infer.chat import ask
from tailorbird.perf.stages import Clock
from tailorbird.processing.picture import open_picture
from tailorbird.processing.processor import Processor
from tailorbird.processing.tiles import Layout, TileSpec
from tailorbird.storage import new_file

SHEET, GAP, LABEL = 1200, 6, 18  # px: width of the drawn tiles, between tiles, of a caption
REPEATS = 5  # of each stage; the median counts
FORMATS = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True, kw_only=True)
class Look:
    """One picture on its way into the model."""

    size: tuple[int, int]  # height, width in px
    layout: Layout
    tiles: Tensor  # (num_tiles, 3, tile, tile) in [-1, 1]
    counts: dict[str, int]  # tokens by kind
    prompt: str
    cost_ms: dict[str, float]  # stage -> median


def look(processor: Processor, file: Path, question: str) -> Look:
    """Take the stages of the processor one by one.

    Raises:
        DataError: the picture cannot be read, or the model has no eyes.
    """
    messages = ask(question, images=[file])
    clock, spec = Clock(torch.device("cpu"), REPEATS), processor.tiles
    picture = clock("open the file", lambda: open_picture(file))
    row = clock("open, lay out, tokenize", lambda: processor.row(messages))
    exact = clock("cut into tiles, exact", lambda: spec.exact(picture))
    fast = clock("cut into tiles, fast", lambda: spec.fast(picture[None])[0])
    return Look(
        size=(picture.shape[0], picture.shape[1]),
        layout=spec.layout(picture.shape[0], picture.shape[1]),
        tiles=fast if processor.fast else exact,
        counts={str(kind): num for kind, num in row.counts.items()},
        prompt=processor.text(messages),
        cost_ms=clock.ms,
    )


def tables(seen: Look, spec: TileSpec) -> list[RenderableType]:
    """Sizes, tokens and times for the terminal, then the prompt with runs of `<image>` counted."""
    layout = seen.layout
    cuts = f"{layout.rows} x {layout.cols} tiles and the whole" if layout.rows else "one tile"
    sizes = Table("picture", "resized", "cut from", "tiles", title="px, height x width")
    sizes.add_row(
        *(f"{h} x {w}" for h, w in (seen.size, layout.resized, layout.grid)), f"{cuts} of {spec.tile} px"
    )
    tokens = Table("tokens", "number", "share")
    total = sum(seen.counts.values())
    for kind, num in [*seen.counts.items(), ("all", total)]:
        tokens.add_row(kind, str(num), f"{num / total:.0%}")
    costs = Table("stage", "ms")
    for stage, ms in seen.cost_ms.items():
        costs.add_row(stage, f"{ms:.1f}")
    for rows in (tokens, costs):
        for column in rows.columns[1:]:
            column.justify = "right"
    return [sizes, tokens, costs, shorten(seen.prompt)]


def shorten(prompt: str) -> str:
    """Runs of `<image>` as their number."""
    return re.sub(r"(?:<image>){2,}", lambda run: f"<image>*{len(run[0]) // len('<image>')}", prompt)


def check_sheet(out: Path) -> None:
    """Raises ConfigError if a picture cannot be written under this name."""
    if out.suffix.lower() not in FORMATS:
        raise ConfigError(f"{out} is no name for a picture: end it in one of {', '.join(FORMATS)}")


def draw_sheet(seen: Look, out: Path) -> None:
    """Write a picture of the tiles where they lie, the whole picture beside them, each with its marker."""
    rows, cols = max(seen.layout.rows, 1), max(seen.layout.cols, 1)
    columns = cols + (1 if seen.layout.rows else 0)
    side = min(SHEET // max(columns, 3), seen.tiles.shape[-1])
    sheet = Image.new("RGB", (columns * (side + GAP) + GAP, rows * (side + LABEL + GAP) + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for i, tile in enumerate(seen.tiles):
        is_whole = i == len(seen.tiles) - 1
        row, col = (0, columns - 1) if is_whole else divmod(i, cols)
        left, top = GAP + col * (side + GAP), GAP + row * (side + LABEL + GAP)
        draw.text((left, top), "global-img" if is_whole else f"row_{row + 1}_col_{col + 1}", "#222222", font)
        pixels = ((tile + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).movedim(0, -1)
        picture = Image.fromarray(pixels.numpy()).resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(picture, (left, top + LABEL))
    with new_file(out) as temporary:
        sheet.save(temporary)
