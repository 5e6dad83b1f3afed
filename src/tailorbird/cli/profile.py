"""tailorbird profile"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from tailorbird.infer.config import ImageOptions, LoadOptions


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Say where the time of an answer goes, from the processor to the last token.

    Example: tailorbird profile HuggingFaceTB/SmolVLM2-256M-Video-Instruct --image cat.jpg --dtype bfloat16
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Folder of a model, or its id on the hub."""
    image: Path | None = None
    """The picture; without one, 640 x 480 px of noise."""
    tokens: int = 32
    """Length of the answer that is reckoned with."""
    repeats: int = 3
    """Runs of each stage; the median counts."""
    images: Annotated[ImageOptions, tyro.conf.arg(name="")] = field(default_factory=ImageOptions)
    load: Annotated[LoadOptions, tyro.conf.arg(name="")] = field(default_factory=LoadOptions)

    def __call__(self) -> None:
        from tailorbird.infer.chat import open_model
        from tailorbird.perf.stages import measure, table
        from tailorbird.progress import console

        model = open_model(self.model, self.load, self.images)
        found = measure(model, self.image, num_tokens=self.tokens, repeats=self.repeats)
        console.print(table(found))
