"""tailorbird inspect"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from tailorbird.infer.config import ImageOptions


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Show what a model is given for a picture: tiles, tokens by kind, the prompt, the cost of each stage.

    Example: tailorbird inspect HuggingFaceTB/SmolVLM2-256M-Video-Instruct --image cat.jpg --no-split

    Only the processor is fetched and loaded, not the weights.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Folder of a model, or its id on the hub."""
    image: Path
    """The picture."""
    question: str = "What is this?"
    """Asked about it in the prompt."""
    out: Path = Path("tiles.png")
    """Where the tiles are drawn."""
    images: Annotated[ImageOptions, tyro.conf.arg(name="")] = field(default_factory=ImageOptions)
    revision: str | None = None
    """Branch, tag or commit on the hub."""

    def __call__(self) -> None:
        from tailorbird.infer.chat import open_processor
        from tailorbird.perf.look import check_sheet, draw_sheet, look, tables
        from tailorbird.progress import console

        check_sheet(self.out)
        processor = open_processor(self.model, self.revision, self.images)
        seen = look(processor, self.image, self.question)
        for part in tables(seen, processor.tiles):
            console.print(part)
        draw_sheet(seen, self.out)
        console.print(f"tiles: {self.out}")
