"""tailorbird init"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tailorbird.recipes.parts import Parts


@dataclass(frozen=True, kw_only=True)
class Init:
    """Make a VLM to train from an image tower, a new connector and a language model. It cannot see yet.

    Example: tailorbird init --vision google/siglip-base-patch16-512 --text SmolLM2-135M.gguf --out runs/vlm

    Example: tailorbird init --vision fresh --text HuggingFaceTB/SmolLM2-135M-Instruct --image-size 384
    --shuffle 3 --out runs/vlm

    The folder has the released SmolVLM2's layout: ids, chat template, and files that transformers reads.
    """

    out: Path
    """Folder for the model; it must not hold anything."""
    parts: Annotated[Parts, tyro.conf.arg(name="")]

    def __call__(self) -> None:
        from tailorbird.progress import console
        from tailorbird.recipes.assemble import init

        for note in init(self.parts, self.out).notes:
            console.print(note)
        console.print(f"model: {self.out}")
