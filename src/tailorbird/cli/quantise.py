"""tailorbird quantise"""

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True, kw_only=True)
class Quantise:
    """Make an int8 copy of a policy: half the memory or less, and fast on a CPU with the engine openvino.

    Example: tailorbird quantise runs/demo/policy --out runs/int8 --data runs/demo/dataset

    Then: tailorbird rollout runs/int8 --engine openvino --sim.size 192 --out runs/int8-rollout
    """

    policy: tyro.conf.Positional[str]
    """Folder of a policy, or its id on the hub."""
    out: Path
    """New folder for the copy; it also gets int8.json, with the error of each layer."""
    data: Path | None = None
    """LeRobot dataset to calibrate on; without one, simulated scenes."""
    observations: int = 8
    """How many to calibrate on; of scenes there are 8."""
    stats: str | None = None
    """Dataset, or set in a policy of lerobot, to normalise with, if the policy does not say."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    max_error: float = 0.05
    """A layer whose outputs change by more than this share stays in float."""

    def __call__(self) -> None:
        from tailorbird.evals.int8_report import table
        from tailorbird.infer.policy import load_policy
        from tailorbird.progress import console
        from tailorbird.recipes.quantise import quantise_policy

        policy = load_policy(self.policy, device="cpu", revision=self.revision, stats=self.stats)
        found = quantise_policy(
            policy, self.out, data=self.data, num=self.observations, max_error=self.max_error
        )
        console.print(table(found))
        console.print(f"{self.out}: act with it through load_policy(..., engine='openvino')")
