"""tailorbird demo"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from tailorbird.provenance import command, cores
from tailorbird.recipes.config import DemoConfig


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Record demonstrations, train one policy for five tasks, watch it act on unseen seeds, write a report.

    About twelve minutes on two CPU cores. Interrupted at any point, the same command continues.
    """

    out: Path = Path("runs/demo")
    """Folder for everything that is made."""
    workers: int = field(default_factory=cores)
    """Simulators side by side, one process each."""
    settings: Annotated[DemoConfig, tyro.conf.arg(name="")] = field(default_factory=DemoConfig)

    def __call__(self) -> None:
        from tailorbird.progress import console
        from tailorbird.recipes.demo import demo

        report = demo(self.settings, self.out, self.workers, command())
        console.print(f"report: {report}")
