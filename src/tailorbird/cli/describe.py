"""tailorbird describe"""

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

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
    sampling: tyro.conf.UseAppendAction[Annotated[Sampling, tyro.conf.arg(name="")]] = field(
        default_factory=Sampling
    )
    images: Annotated[ImageOptions, tyro.conf.arg(name="")] = field(default_factory=ImageOptions)
    load: Annotated[LoadOptions, tyro.conf.arg(name="")] = field(default_factory=LoadOptions)

    def __call__(self) -> None:
        from tailorbird.infer.chat import open_model
        from tailorbird.progress import console
        from tailorbird.recipes.captions import caption, find_media

        files = find_media(self.files)
        model = open_model(self.model, self.load, self.images)
        asked = {"model": self.model, "question": self.question, "settings": self._unusual()}
        done = caption(model, files, self.out, question=self.question, sampling=self.sampling, asked=asked)
        console.print(f"{self.out}: {done.new} new, {done.before} from before, {len(done.refused)} left out")
        if done.refused:
            sys.exit(1)

    def _unusual(self) -> dict[str, Any]:
        """Settings that are not the default's: lines that were made with others do not mix."""
        chosen = {**asdict(self.sampling), **asdict(self.images), **asdict(self.load)}
        usual = {**asdict(Sampling()), **asdict(ImageOptions()), **asdict(LoadOptions())}
        return {name: value for name, value in chosen.items() if value != usual[name] and name != "device"}
