"""tailorbird bench"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from tailorbird.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Print what was measured side by side with the reference implementations, and how.

    Examples: tailorbird bench policy --against lerobot

    tailorbird bench policy --check runs/policy.json

    Measuring again needs a checkout with the reference installed: the printed command does it.
    """

    name: tyro.conf.Positional[
        Literal[
            "policy",
            "vlm",
            "train",
            "scaling",
            "pixels",
            "memory",
            "server",
            "control",
            "delay",
            "soak",
            "loss-gap",
        ]
    ]
    """policy: a chunk of actions. vlm: a prompt and its answer. train: tokens a second of learning.
    scaling: a chunk against cameras, robots, steps and px. pixels: a picture's way into the model. memory:
    the peak of a process. server: 64 robots on one policy server. control: rate, misses and ages of a loop.
    delay: success with a policy that takes its time. soak: half an hour of faults. loss-gap: first
    validation loss and preparation time of each way to a batch of camera pictures."""
    against: Literal["lerobot", "transformers"] | None = None
    """Refuse figures that were measured beside another library."""
    check: Path | None = None
    """A fresh result: name the rows whose ratio to the peer is a quarter below the stored one, and end with 1
    if there are any."""
    results: Path = Path("results")
    """Folder of the results."""

    def __call__(self) -> None:
        from tailorbird.perf.results import regressions, tables
        from tailorbird.progress import console

        if self.check is not None and self.against is not None:
            raise ConfigError("--check compares with what is stored, whatever the peer: leave --against out")
        if self.check is None:
            for part in tables(self.results, self.name, self.against):
                console.print(part)
            return
        if slower := regressions(self.results, self.name, self.check):
            raise DataError("slower, beside the peer, than what is stored:\n" + "\n".join(slower))
        console.print(f"{self.check}: no row is a quarter slower than what is stored")
