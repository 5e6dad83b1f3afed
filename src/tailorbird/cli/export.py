"""tailorbird export"""

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a policy's whole call as one file for other runtimes, and check that it acts the same there.

    Example: tailorbird export runs/demo/policy policy.onnx

    Inputs: pixels (robots, cameras, 3, side, side) in [-1, 1], ids and ids_valid (robots, words), state and
    noise. Output: actions. State and actions are normalised. Statistics and tokenizer are in the metadata of
    an .onnx, in an extra file of a .pt2: "tailorbird".
    """

    policy: tyro.conf.Positional[str]
    """Folder of a policy, or its id on the hub."""
    out: tyro.conf.Positional[Path]
    """File to write: .onnx, or .pt2 for torch.export."""
    stats: str | None = None
    """Dataset, or set in a policy of lerobot, to normalise with, if the policy does not say."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""

    def __call__(self) -> None:
        from tailorbird.infer.export import export_policy
        from tailorbird.infer.policy import load_policy
        from tailorbird.progress import console

        policy = load_policy(self.policy, device="cpu", revision=self.revision, stats=self.stats)
        error = export_policy(policy, self.out)
        size = self.out.stat().st_size / 1e6
        console.print(f"{self.out}: {size:.0f} MB, actions within {error:.1e} of the largest")
