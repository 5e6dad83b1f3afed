"""tailorbird chat"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from tailorbird.infer.config import ImageOptions, LoadOptions, Sampling


@dataclass(frozen=True, kw_only=True)
class Chat:
    """Ask a vision-language model about pictures and videos. Without a question: talk.

    Examples: tailorbird chat HuggingFaceTB/SmolVLM2-256M-Video-Instruct --image cat.jpg "What is this?"

    tailorbird chat runs/mine --video clip.mp4 --temperature 0.7 --top-p 0.9
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Folder of a model, its id on the hub, or a GGUF file of a language model."""
    question: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="QUESTION")] = ""
    """What to ask; the answer is printed while it comes."""
    image: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """A picture to show; once for each."""
    video: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """A video to show, after the pictures; once for each."""
    sampling: tyro.conf.UseAppendAction[Annotated[Sampling, tyro.conf.arg(name="")]] = field(
        default_factory=Sampling
    )
    images: Annotated[ImageOptions, tyro.conf.arg(name="")] = field(default_factory=ImageOptions)
    load: Annotated[LoadOptions, tyro.conf.arg(name="")] = field(default_factory=LoadOptions)

    def __call__(self) -> None:
        from tailorbird.infer.chat import ask, open_model
        from tailorbird.recipes.talk import Shown, answer, talk

        model = open_model(self.model, self.load, self.images)
        if not self.question:
            return talk(model, self.sampling, Shown([*self.image], [*self.video]))
        _, interrupted = answer(
            model, ask(self.question, images=self.image, videos=self.video), self.sampling
        )
        if interrupted:
            raise KeyboardInterrupt
        return None
