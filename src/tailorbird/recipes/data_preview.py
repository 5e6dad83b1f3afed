"""One page that shows rows of a source as a model would be given them. It needs no network and no script."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tailorbird.data.sample import BadSample, Sample, Source
from tailorbird.errors import DataError
from tailorbird.processing.chat import ImageItem, Item, TextItem, VideoItem
from tailorbird.processing.processor import Processor
from tailorbird.recipes.data_check import spread
from tailorbird.storage import new_file

EDGE = 256  # px, longer side of a thumbnail
LONGEST = 4000  # letters of a text


def preview(source: Source, rows: int, out: Path, processor: Processor | None = None) -> int:
    """Write the page of so many rows, spread over all. Returns how many of them cannot be used.

    processor: its tokens are counted, by what they are for.
    """
    import jinja2

    shown = [_row(source, row, processor) for row in spread(len(source), rows)]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tailorbird.recipes", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("data_preview.html.j2").render(
        name=source.name, total=len(source), fingerprint=source.fingerprint, rows=shown
    )
    with new_file(out) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")  # halves of characters
    return sum(row["problem"] is not None for row in shown)


def _row(source: Source, row: int, processor: Processor | None) -> dict[str, Any]:
    """What the template shows of a row."""
    try:
        sample = source[row]
    except BadSample as error:
        return {
            "name": f"row {row}",
            "turns": [],
            "tokens": None,
            "problem": f"dropped ({error.reason}): {error}",
        }
    turns: list[dict[str, Any]] = []
    problems: list[str] = []
    for message in sample.messages:
        items = [show_item(item, problems.append) for item in message.items]
        turns.append({"role": message.role, "items": items})
    return {
        "name": sample.name,
        "turns": turns,
        "tokens": None if processor is None or problems else _tokens(sample, processor, problems.append),
        "problem": "; ".join(problems) or None,
    }


def _tokens(sample: Sample, processor: Processor, complain: Callable[[str], None]) -> str | None:
    try:
        row = processor.row(sample.messages, reply=False)
    except DataError as error:
        complain(str(error))
        return None
    learned = sum(token.learned for token in row.tokens)
    kinds = ", ".join(f"{count} {kind}" for kind, count in row.counts.items() if count)
    return f"{len(row.tokens)} tokens: {kinds}; {learned} learned, {row.num_tiles} tiles"


def show_item(item: Item, complain: Callable[[str], None]) -> dict[str, Any]:
    """What a page shows of it: "text", or "picture", a JPEG in base64, with a "note"."""
    if isinstance(item, TextItem):
        more = f" ... ({len(item.text)} letters)" if len(item.text) > LONGEST else ""
        return {"text": item.text[:LONGEST] + more}
    try:
        return _picture(item) if isinstance(item, ImageItem) else _video(item)
    except DataError as error:
        complain(str(error))
        return {"text": f"[{error}]"}


def _picture(item: ImageItem) -> dict[str, Any]:
    from tailorbird.processing.picture import open_picture

    picture = open_picture(item.source)  # (H, W, 3)
    return {"picture": _thumbnail(picture), "note": f"{picture.shape[1]} x {picture.shape[0]} px"}


def _video(item: VideoItem) -> dict[str, Any]:
    """The first frame."""
    from tailorbird.processing.video_file import VideoFile

    source = item.source if isinstance(item.source, bytes) else Path(item.source)
    file = VideoFile(source)
    (frame,) = file.pick([0])  # (H, W, 3)
    note = (
        f"video, {frame.shape[1]} x {frame.shape[0]} px, {file.num_frames} frames at {file.fps:.3g} a second"
    )
    return {"picture": _thumbnail(frame), "note": note}


def _thumbnail(picture: Any) -> str:
    """picture: (H, W, 3) uint8. A JPEG in base64."""
    from PIL import Image

    small = Image.fromarray(picture.numpy())
    small.thumbnail((EDGE, EDGE))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=80)
    return base64.b64encode(file.getvalue()).decode()
