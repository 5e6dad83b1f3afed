"""tailorbird bench"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Print what was measured side by side with the reference implementations, and how.

    Example: tailorbird bench loss-gap

    Measuring again needs a checkout with the reference installed: the printed command does it.
    """

    name: tyro.conf.Positional[Literal["loss-gap"]]
    """loss-gap: first validation loss and preparation time of each way to a batch of camera pictures."""
    results: Path = Path("results")
    """Folder of the results."""

    def __call__(self) -> None:
        from tailorbird.perf.results import tables
        from tailorbird.progress import console

        for part in tables(self.results, self.name):
            console.print(part)
