"""tailorbird train"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from tailorbird.recipes.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a small VLA from nothing on a LeRobot dataset. Its checkpoints are policies.

    Example: tailorbird train --data runs/demo/dataset --out runs/mine --train.steps 2000

    Ctrl-C saves. Interrupted at any point, the same command continues from the newest checkpoint.
    """

    data: str
    """Folder of a LeRobot dataset (v3 or v2.1), or its id on the hub."""
    out: Path
    """Folder for checkpoints, metrics.jsonl and TensorBoard's files."""
    resume: bool = True
    """Continue what the folder holds; --no-resume refuses a folder that holds a run."""
    settings: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)

    def __call__(self) -> None:
        from tailorbird.errors import ConfigError, Interrupted
        from tailorbird.progress import console
        from tailorbird.recipes.fit import fit
        from tailorbird.train.state import newest_checkpoint

        if not self.resume and newest_checkpoint(self.out):
            raise ConfigError(
                f"{self.out} holds {newest_checkpoint(self.out)}: choose another --out, or --resume"
            )
        trained = fit(self.settings, self.data, self.out)
        if not trained.finished:
            raise Interrupted(f"stopped at step {trained.step}, saved: the same command goes on from there")
        console.print(f"policy: {trained.checkpoint}")
