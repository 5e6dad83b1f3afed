"""What the commands that teach a vision-language model have in common."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from tailorbird.cli.train_out import IntoFolder
from tailorbird.recipes.vlm_config import VLMRunConfig

if TYPE_CHECKING:
    from tailorbird.train.loop import Trained


@dataclass(frozen=True, kw_only=True)
class OnConversations(IntoFolder):
    data: tuple[str, ...]
    """Files or folders of your own, and NAME:FOLDER or NAME/CONFIG:FOLDER of sets in `data list`; each with
    =WEIGHT, or all without."""
    media: Path | None = None
    """Folder in which your own rows name pictures and videos; else that of the rows."""
    settings: Annotated[VLMRunConfig, tyro.conf.arg(name="")]
    usual_steps: tyro.conf.Suppress[int] = 0  # of the recipe

    def teach(self, model: str) -> None:
        from tailorbird.errors import ConfigError
        from tailorbird.recipes.vlm import teach

        steps, epochs = self.settings.train.steps, self.settings.epochs
        if epochs and steps != self.usual_steps:
            raise ConfigError(
                f"--train.steps {steps} and --epochs {epochs:g} both say how long it lasts: choose "
                "--epochs 0 for so many steps, or leave --train.steps out"
            )
        if self.dry_run:
            from tailorbird.recipes.foresee import foresee_taught

            return foresee_taught(self.settings, model, self.data, self.media, (self.gpu, self.gpus))
        self.carry_out(
            lambda: teach(self.settings, model, self.data, self.out, self.media),
            self._told,
        )

    def _told(self, trained: "Trained") -> str:
        return (
            f"model: {self.out}/model, of step {int((trained.best or trained.checkpoint).name[5:])}. "
            f"Talk to it: tailorbird chat {self.out}/model\n"
            f"What happened: tailorbird report {self.out}"
        )
