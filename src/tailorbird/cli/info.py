"""tailorbird info"""

from dataclasses import dataclass

import tyro


@dataclass(frozen=True, kw_only=True)
class Info:
    """Say what a model size, a model, a policy, a dataset or a run is; without one, which sizes exist.

    Examples: tailorbird info smolvla-base

    tailorbird info runs/demo/dataset
    """

    what: tyro.conf.Positional[str] = ""
    """A size's name or a folder."""

    def __call__(self) -> None:
        from tailorbird.evals.describe import describe
        from tailorbird.progress import console

        for part in describe(self.what):
            console.print(part)
