"""How exact each way from noise to actions is, against a very fine one.

python bench/solvers.py [POLICY]

POLICY: runs/demo/policy. Prints a table and writes results/solvers.json. What costs time is a call of the
expert: one a step for Euler, two for the others.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np

from tailorbird.evals.scenes import fit_scenes
from tailorbird.infer.policy import Policy, load_policy
from tailorbird.model.config import Solver
from tailorbird.provenance import stamp, versions
from tailorbird.storage import write_json

ROOT = Path(__file__).parents[1]
FINE, CALLS, SCENES = 320, (2, 4, 6, 10, 20), 8


def actions(policy: Policy, solver: Solver, num_steps: int) -> np.ndarray:
    policy.model.cfg = replace(policy.model.cfg, solver=solver, num_steps=num_steps)
    policy.reset(0)
    return np.stack([chunk.actions for chunk in policy.act_batch(fit_scenes(policy.pipeline, SCENES)[0])])


def main() -> None:
    policy = load_policy(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs/demo/policy", device="cpu")
    truth = actions(policy, "midpoint", FINE)
    spread = truth.reshape(-1, truth.shape[-1]).std(0)
    rows = []
    for solver in get_args(Solver):
        for calls in CALLS:
            found = actions(policy, solver, calls if solver == "euler" else calls // 2)
            apart = np.abs(found - truth) / spread
            rows.append({"solver": solver, "calls": calls, "mean": apart.mean(), "largest": apart.max()})
            print(
                "{solver:9} {calls:3} calls: mean error {mean:.4f}, largest {largest:.3f}".format(**rows[-1])
            )
    rows = [{name: float(x) if name in ("mean", "largest") else x for name, x in row.items()} for row in rows]
    unit = "standard deviations of the policy's actions"
    write_json(
        ROOT / "results/solvers.json",
        {"rows": rows, "unit": unit, **stamp("make bench-solvers"), "versions": versions()},
    )


if __name__ == "__main__":
    main()
