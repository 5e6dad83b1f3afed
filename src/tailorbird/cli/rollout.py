"""tailorbird rollout"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from tailorbird.evals.config import Condition, RolloutConfig
from tailorbird.provenance import command, cores


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Let a policy act in the simulator on many seeds, and count.

    Example: tailorbird rollout runs/demo/policy --tasks push-v3 door-close-v3 --sim.size 192 --out runs/again

    Writes result.json, rollouts/ and, for the first seed of each task, videos/ into --out.
    """

    policy: tyro.conf.Positional[Path]
    """Folder of a policy: a checkpoint, or what `demo` calls policy/."""
    out: Path
    """Folder for the results."""
    condition: Condition = "normal"
    """shuffled: told another task's instruction. black: shown black pictures."""
    workers: int = field(default_factory=cores)
    """Simulators side by side, one process each."""
    settings: Annotated[RolloutConfig, tyro.conf.arg(name="")] = field(default_factory=RolloutConfig)

    def __call__(self) -> None:
        from tailorbird.checkpoint.policy import fingerprint
        from tailorbird.evals.results import load_conditions, save_result, table
        from tailorbird.evals.rollout import Run, check, rollouts
        from tailorbird.infer.policy import load_policy
        from tailorbird.progress import console
        from tailorbird.storage import claim

        check(load_policy(self.policy), self.settings)  # a refused command must not claim the folder
        run = Run(policy=self.policy, cfg=self.settings, condition=self.condition)
        claim(
            self.out / "settings.json", {"policy": fingerprint(self.policy), "rollout": asdict(self.settings)}
        )
        for name, episodes in rollouts({self.condition: run}, self.workers):
            save_result(self.out, name, episodes, self.settings, command())
        console.print(table(load_conditions(self.out)))
        console.print(f"results: {self.out}; `tailorbird report {self.out}` makes a page of them")
