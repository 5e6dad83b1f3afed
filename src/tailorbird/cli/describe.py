"""tailorbird describe"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from tailorbird.infer.config import ImageOptions, LoadOptions, Sampling


@dataclass(frozen=True, kw_only=True)
class Describe:
    """Caption pictures and videos, one JSON line each. Interrupted, the same command goes on.

    Example: tailorbird describe holiday/ --model HuggingFaceTB/SmolVLM2-500M-Video-Instruct --out a.jsonl

    A file that cannot be read is named and left out; the others are captioned, and the command ends with 1.
    """

    files: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FILE")]
    """Pictures, videos, and folders of them."""
    model: str
    """Folder of a model, or its id on the hub."""
    out: Path = Path("captions.jsonl")
    """Where the lines are added: file, caption, reason, tokens, seconds, model, question."""
    question: str = "Describe this in detail."
    """What is asked about each file."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = field(default_factory=Sampling)
    images: Annotated[ImageOptions, tyro.conf.arg(name="")] = field(default_factory=ImageOptions)
    load: Annotated[LoadOptions, tyro.conf.arg(name="")] = field(default_factory=LoadOptions)

    def __call__(self) -> None:
        from tailorbird.infer.chat import open_model
        from tailorbird.progress import console
        from tailorbird.recipes.captions import caption, find_media

        files = find_media(self.files)
        model = open_model(self.model, self.load, self.images)
        done = caption(
            model, files, self.out, name=self.model, question=self.question, sampling=self.sampling
        )
        console.print(f"{self.out}: {done.new} new, {done.before} from before, {len(done.refused)} left out")
        if done.refused:
            sys.exit(1)
