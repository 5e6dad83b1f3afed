"""What all commands that train have in common: where the run goes, and how it ends."""

import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tailorbird.train.loop import Trained


@dataclass(frozen=True, kw_only=True)
class IntoFolder:
    out: Path
    """Folder for checkpoints, metrics.jsonl and TensorBoard's files."""
    resume: bool = True
    """Continue what the folder holds; --no-resume refuses a folder that holds a run."""
    dry_run: bool = False
    """Train nothing: say what would learn, the memory that it takes, and the hours on --gpu."""
    gpu: str = "H100"
    """The GPU that --dry-run reckons with; an unknown one is answered with those that are known."""
    gpus: int = 1
    """So many of them."""

    def carry_out(self, fit: "Callable[[], Trained]", told: "Callable[[Trained], str]") -> None:
        """told: what to say of a run that has come to its end."""
        from tailorbird.errors import ConfigError, Interrupted
        from tailorbird.progress import console
        from tailorbird.train.state import newest_checkpoint

        if not self.resume and newest_checkpoint(self.out):
            raise ConfigError(
                f"{self.out} holds {newest_checkpoint(self.out)}: choose another --out, or --resume"
            )
        trained = fit()
        if trained.finished:
            console.print(told(trained))
            return
        stopped = f"stopped at step {trained.step}, saved: the same command goes on from there"
        if trained.stopped_by == signal.SIGINT:
            raise Interrupted(stopped)
        console.print(stopped)  # a cluster that asked us to leave takes 0 for done
