"""tailorbird record"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from tailorbird.data.record_config import RecordConfig
from tailorbird.provenance import cores


@dataclass(frozen=True, kw_only=True)
class Record:
    """Let scripted experts play Meta-World tasks, and keep what succeeds as a LeRobot v3 dataset.

    Example: tailorbird record --out data/doors --demos door-open-v3 50 door-close-v3 50

    Interrupted at any point, the same command continues; at most the current episodes are played again.
    """

    out: Path
    """Folder of the dataset."""
    workers: int = field(default_factory=cores)
    """Simulators side by side, one process each."""
    settings: Annotated[RecordConfig, tyro.conf.arg(name="")]

    def __call__(self) -> None:
        from tailorbird.data.record import record
        from tailorbird.progress import console

        found = record(self.settings, self.out, self.workers)
        for task, num in found["episodes"].items():
            console.print(
                f"{task}: {num} episodes, {found['failed_seeds'][task]} seeds failed and were left out"
            )
        console.print(f"dataset: {self.out}")
