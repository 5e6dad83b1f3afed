"""Teach the demo's policy a task that it does not know, from 20 demonstrations, and count before and after.

python bench/finetune.py [POLICY]

POLICY: runs/demo/policy. Works in runs/finetune, going on where it stopped, and writes results/finetune.json:
five minutes on two cores.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tailorbird.evals.config import RolloutConfig
from tailorbird.evals.results import Episode
from tailorbird.evals.rollout import Run, rollouts
from tailorbird.progress import console
from tailorbird.provenance import cores, stamp, versions
from tailorbird.recipes.config import DEMOS, WORLD
from tailorbird.storage import read_json, write_json
from tailorbird.train.state import newest_checkpoint

ROOT = Path(__file__).parents[1]
HERE = Path("runs/finetune")
TASK, NUM_DEMOS = "window-close-v3", 20


def tailorbird(*words: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "tailorbird", *map(str, words)], check=True)


def success(episodes: Sequence[Episode]) -> dict[str, float]:
    """Per task."""
    tasks = dict.fromkeys(one.task for one in episodes)
    solved = {task: [one.solved for one in episodes if one.task == task] for task in tasks}
    return {task: sum(found) / len(found) for task, found in solved.items()}


def main() -> None:
    policy = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs/demo/policy"
    data, tuned = HERE / "dataset", HERE / "tuned"
    tailorbird("record", "--out", data, "--demos", TASK, str(NUM_DEMOS), "--sim.size", str(WORLD.size))
    tailorbird("train", "--policy", policy, "--data", data, "--out", tuned, "--stats", "policy")
    checkpoint = newest_checkpoint(tuned)
    assert checkpoint is not None
    cfg = RolloutConfig(tasks=(TASK, *DEMOS), sim=WORLD, film=False)
    runs = {name: Run(policy=path, cfg=cfg) for name, path in (("before", policy), ("after", checkpoint))}
    found = {name: success(episodes) for name, episodes in rollouts(runs, cores())}
    for task in cfg.tasks:
        console.print(f"{task}: {found['before'][task]:.0%} before, {found['after'][task]:.0%} after")
    training = read_json(checkpoint / "train.json")
    write_json(
        ROOT / "results/finetune.json",
        {
            "task": TASK,
            "demonstrations": NUM_DEMOS,
            "train_steps": training["step"],
            "train_minutes": training["seconds"] / 60,
            "seeds": cfg.seeds,
            "new_task": {name: rates[TASK] for name, rates in found.items()},
            "old_tasks": {name: {task: rates[task] for task in DEMOS} for name, rates in found.items()},
            **stamp("make bench-finetune"),
            "versions": versions(),
        },
    )


if __name__ == "__main__":
    main()
