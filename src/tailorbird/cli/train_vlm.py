"""tailorbird train vision, vision-dora, video"""

from dataclasses import dataclass

import tyro

from tailorbird.cli.on_conversations import OnConversations
from tailorbird.recipes.vlm_config import VLMRunConfig, video, vision, vision_dora


@dataclass(frozen=True, kw_only=True)
class Stage(OnConversations):
    """Teach a vision-language model from conversations about pictures and videos.

    Example: tailorbird train vision --model runs/new --data docmatix:data/docmatix cauldron:data/cauldron
    --out runs/vision

    Example: tailorbird train video --model runs/vision/model --data llava-video:data/llava-video=0.6
    mine.jsonl=0.4 --out runs/video

    Without weights the named sets have the shares of the published mix.
    """

    model: str
    """Folder of a model (`init` makes one from parts), or its id on the hub."""

    def __call__(self) -> None:
        self.teach(self.model)


def _stage(settings: VLMRunConfig) -> Stage:
    return Stage(
        data=tyro.MISSING,
        out=tyro.MISSING,
        model=tyro.MISSING,
        settings=settings,
        usual_steps=settings.train.steps,
    )


VISION_DORA = tyro.conf.subcommand(
    "vision-dora",
    default=_stage(vision_dora()),
    description="Learn to see, first part, as SmolVLM did: DoRA beside the whole connector and the norms.",
)
VISION = tyro.conf.subcommand(
    "vision",
    default=_stage(vision()),
    description="Learn to see, as SmolVLM did: everything learns from pictures.",
)
VIDEO = tyro.conf.subcommand(
    "video",
    default=_stage(video()),
    description="Learn from videos, pictures and texts as SmolVLM2 did, each part at its own rate.",
)
