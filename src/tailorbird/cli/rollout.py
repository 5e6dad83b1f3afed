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

    For a SmolVLA of lerobot, say which camera is which: --rename corner2 camera1 --without camera2 camera3.

    Writes result.json, rollouts/ and, for the first seed of each task, videos/ into --out.
    """

    policy: tyro.conf.Positional[Path]
    """Folder or hub id of a policy: a checkpoint, what `demo` calls policy/, or a SmolVLA of lerobot."""
    out: Path
    """Folder for the results."""
    condition: Condition = "normal"
    """shuffled: told another task's instruction. black: shown black pictures."""
    workers: int = field(default_factory=cores)
    """Simulators side by side, one process each."""
    ray: str | None = None
    """Play on a cluster of Ray, the episodes are the same: auto, HOST:PORT, or local, which starts one here.
    Its machines need Tailorbird, and the policy in the same place."""
    settings: Annotated[RolloutConfig, tyro.conf.arg(name="")] = field(default_factory=RolloutConfig)

    def __call__(self) -> None:
        from tailorbird.checkpoint.hub import find_model
        from tailorbird.checkpoint.lerobot import OWN_VLM
        from tailorbird.checkpoint.policy import fingerprint
        from tailorbird.evals.results import load_conditions, save_result, table
        from tailorbird.evals.rollout import Run, open_policy, rollouts
        from tailorbird.progress import console
        from tailorbird.storage import claim

        policy = find_model(self.policy, inner=(OWN_VLM,))
        open_policy(policy, self.settings)  # a refused command must not claim the folder
        run = Run(policy=policy, cfg=self.settings, condition=self.condition)
        claim(self.out / "settings.json", {"policy": fingerprint(policy), "rollout": asdict(self.settings)})
        for name, episodes in rollouts({self.condition: run}, self.workers, self.ray):
            save_result(self.out, name, episodes, self.settings, command())
        console.print(table(load_conditions(self.out)))
        console.print(f"results: {self.out}; `tailorbird report {self.out}` makes a page of them")
