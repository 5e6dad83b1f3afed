"""tailorbird info"""

from dataclasses import dataclass

import tyro

from tailorbird.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Info:
    """Say what a model size, a model, a policy, a dataset or a run is; without one, which sizes exist.

    Examples: tailorbird info smolvla-base

    tailorbird info runs/demo/dataset

    tailorbird info smolvla-base --estimate --on H200 "RTX 4090"
    """

    what: tyro.conf.Positional[str] = ""
    """A size's name, a folder, or an id on the hub."""
    estimate: bool = False
    """Say instead what the model will cost: operations, least times, peak memory. Needs no weights."""
    on: tuple[str, ...] = ()
    """With --estimate: least times on these devices too, by theoretical figures."""
    pictures: int | None = None
    """With --estimate: cameras of a policy, tiles of a prompt. All cameras, or one tile."""
    words: int = 48
    """With --estimate: tokens of the instruction or the question."""
    json: bool = False
    """With --estimate: print JSON."""

    def __call__(self) -> None:
        from tailorbird.progress import console

        if not self.estimate:
            from tailorbird.evals.describe import describe

            if self != Info(what=self.what):
                raise ConfigError("--on, --pictures, --words and --json belong to --estimate: add it")
            for part in describe(self.what):
                console.print(part)
            return
        from tailorbird.perf.estimate import estimate, tables

        found = estimate(self.what, on=self.on, pictures=self.pictures, words=self.words)
        if self.json:
            console.print_json(data=found.to_json())
            return
        for part in tables(found):
            console.print(part)
