"""tailorbird data preview"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from tailorbird.infer.config import ImageOptions


@dataclass(frozen=True, kw_only=True)
class Preview:
    """Show rows of a source on one page: pictures, first frames of videos, texts, and tokens by kind.

    Examples: tailorbird data preview my.jsonl

    tailorbird data preview cauldron:data/cauldron --model HuggingFaceTB/SmolVLM2-256M-Video-Instruct
    """

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """A file or folder of your own, or NAME:FOLDER or NAME/CONFIG:FOLDER of a set in `data list`."""
    rows: int = 20
    """How many, spread over all."""
    out: Path = Path("page.html")
    """The page."""
    media: Path | None = None
    """Folder in which your own rows name pictures and videos; else that of the rows."""
    model: str | None = None
    """Folder of a model, or its id on the hub, whose tokens are counted; its weights are not fetched."""
    images: Annotated[ImageOptions, tyro.conf.arg(name="")] = field(default_factory=ImageOptions)

    def __call__(self) -> None:
        from tailorbird.data.sources.readers import open_source
        from tailorbird.infer.chat import open_processor
        from tailorbird.progress import console
        from tailorbird.recipes.data_preview import preview

        processor = open_processor(self.model, None, self.images) if self.model else None
        dropped = preview(open_source(self.source, self.media), self.rows, self.out, processor)
        console.print(f"{self.out}: {dropped} of the rows shown cannot be used")
