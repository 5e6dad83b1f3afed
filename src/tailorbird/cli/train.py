"""tailorbird train"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import tyro

from tailorbird.cli.train_out import IntoFolder
from tailorbird.cli.train_vlm import VIDEO, VISION, VISION_DORA, Stage
from tailorbird.recipes.config import RunConfig, TuneConfig, smolvla, tune

if TYPE_CHECKING:
    from tailorbird.train.loop import Trained

RECIPES = ("tiny", "tune", "smolvla", "vision-dora", "vision", "video")


@dataclass(frozen=True, kw_only=True)
class Run(IntoFolder):
    data: str
    """Folder of a LeRobot dataset (v3 or v2.1), or its id on the hub."""


def _policy(trained: "Trained") -> str:
    return f"policy: {trained.checkpoint}"


@dataclass(frozen=True, kw_only=True)
class Tiny(Run):
    """Train a small VLA from nothing.

    Example: tailorbird train --data runs/demo/dataset --out runs/mine --train.steps 2000
    """

    settings: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)

    def __call__(self) -> None:
        from tailorbird.recipes.fit import fit

        if self.dry_run:
            from tailorbird.recipes.foresee import foresee_new

            return foresee_new(self.settings, self.data, (self.gpu, self.gpus))
        self.carry_out(lambda: fit(self.settings, self.data, self.out), _policy)


@dataclass(frozen=True, kw_only=True)
class Tune(Run):
    """Go on training a policy, in Tailorbird's layout or lerobot's; what comes out has the same layout.

    Example: tailorbird train --policy runs/demo/policy --data data/doors --out runs/doors

    Example: tailorbird train smolvla --data me/pick --out runs/pick --rename front camera1 --without camera2
    camera3

    Example: tailorbird train smolvla --data me/pick --out runs/pick --learn.lora.rank 16
    """

    policy: str
    """Folder of a policy, or its id on the hub."""
    settings: Annotated[TuneConfig, tyro.conf.arg(name="")]

    def __call__(self) -> None:
        from tailorbird.recipes.finetune import finetune

        if self.dry_run:
            from tailorbird.recipes.foresee import foresee_tuned

            return foresee_tuned(self.settings, self.policy, self.data, (self.gpu, self.gpus))
        self.carry_out(lambda: finetune(self.settings, self.policy, self.data, self.out), _policy)


def _preset(policy: str, settings: TuneConfig) -> Tune:
    return Tune(data=tyro.MISSING, out=tyro.MISSING, policy=policy, settings=settings)


SMOLVLA = tyro.conf.subcommand(
    "smolvla",
    default=_preset("lerobot/smolvla_base", smolvla()),
    description="Teach SmolVLA your robot, as lerobot does: from lerobot/smolvla_base, the VLM frozen.",
)
Recipe = (
    Annotated[Tiny, tyro.conf.subcommand("tiny")]
    | Annotated[Tune, tyro.conf.subcommand("tune", default=_preset(tyro.MISSING, tune()))]
    | Annotated[Tune, SMOLVLA]
    | Annotated[Stage, VISION_DORA]
    | Annotated[Stage, VISION]
    | Annotated[Stage, VIDEO]
)


@dataclass(frozen=True)
class Train:
    """Train a VLA on a LeRobot dataset, or a VLM on conversations.

    tiny: a small VLA, from nothing. tune: from any policy. smolvla: from SmolVLA, as lerobot does it.
    Left out, it is tune where a --policy is named, else tiny. vision and video: the stages of SmolVLM2, for a
    model of any size; vision-dora goes before them. Each has its own --help.

    Example: tailorbird train --data runs/demo/dataset --out runs/mine --train.steps 2000

    Example: tailorbird train --policy runs/demo/policy --data data/doors --out runs/doors

    Ctrl-C saves, SIGTERM too, and exits with 0. Interrupted at any point, the same command continues from the
    newest checkpoint. `launch` starts it as several processes. --dry-run says what it would need, and ends.
    """

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]

    def __call__(self) -> None:
        self.recipe()


def with_recipe(words: Sequence[str]) -> list[str]:
    """A command line whose `train` says its recipe."""
    if len(words) < 2 or words[0] != "train" or words[1] in (*RECIPES, "-h", "--help"):
        return list(words)
    has_policy = any(word.partition("=")[0] == "--policy" for word in words)
    return ["train", "tune" if has_policy else "tiny", *words[1:]]
