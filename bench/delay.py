"""What a slow policy costs: success and smoothness against the delay, for each way to drive.

python bench/delay.py [POLICY] [--seeds N] [--out FILE]

POLICY: what `make bench-delay` trains: the demo's with chunks of 0.8 seconds, taught to go on from what is
committed. The time that passes is simulated, so the result does not depend on the machine's speed. Of a call
that reuses its scene 15 % of the delay are the expert's, as of smolvla_base's (reuse_share in
results/policy_cpu.json). Writes results/delay.json and .png.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from math import isnan
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from tailorbird.control.chunks import transitions
from tailorbird.control.config import Mode
from tailorbird.evals.config import RolloutConfig
from tailorbird.evals.rollout import Job, act_out
from tailorbird.progress import track
from tailorbird.provenance import stamp, versions
from tailorbird.recipes.config import DemoConfig
from tailorbird.sim.pool import run_in_order
from tailorbird.storage import write_json

ROOT = Path(__file__).parents[1]
DELAYS_MS = (0, 100, 300, 1000)
ASKED_MS = 300  # where the targets are
NOTICED = 0.01  # less jerk than this share of that within chunks is none
Row = dict[str, Any]


MEANS = ("age_s", "scene_age_s", "border_jerk", "inner_jerk", "border_step")


@dataclass(frozen=True)
class Outcome:
    """Of one episode. Jerk is that of the commanded positions: at the borders between chunks, and elsewhere.

    Four ticks make a value of it; where each four have a border among them there is no elsewhere.
    """

    solved: bool
    ticks: int
    held: int
    age_s: float | None
    scene_age_s: float | None
    border_jerk: float
    inner_jerk: float | None
    border_step: float


def outcome(job: Job) -> Outcome:
    _, trace = act_out(job)
    hz = job.cfg.sim.control_hz
    path = np.cumsum(np.clip(np.stack(trace.actions)[:, :3], -1, 1), axis=0)  # without the grip
    smooth = transitions(path.astype(np.float32), trace.switches, hz)
    return Outcome(
        solved=trace.solved,
        ticks=trace.ticks,
        held=trace.held,
        age_s=mean(trace.age_s),
        scene_age_s=mean(trace.scene_age_s),
        border_jerk=smooth.border_jerk_rms,
        inner_jerk=smooth.inner_jerk_rms or None,
        border_step=smooth.border_step,
    )


def mean(values: Iterable[float | None]) -> float | None:
    """Of those that are numbers: a tick without an action has no age."""
    known = [value for value in values if value is not None and not isnan(value)]
    return float(np.mean(known)) if known else None


def jobs_of(policy: Path, cfg: RolloutConfig) -> list[Job]:
    seeds = range(cfg.first_seed, cfg.first_seed + cfg.seeds)
    return [Job(policy, task, seed, "normal", False, cfg) for task in cfg.tasks for seed in seeds]


def row(mode: str, delay_ms: int, jobs: list[Job], found: list[Outcome]) -> Row:
    tasks: dict[str, list[bool]] = defaultdict(list)
    for job, one in zip(jobs, found, strict=True):
        tasks[job.task].append(one.solved)
    means = {name: mean(getattr(one, name) for one in found) for name in MEANS}
    border, inner = means["border_jerk"], means["inner_jerk"]
    added = None if border is None or inner is None else max(0.0, border**2 - inner**2) ** 0.5
    return {
        "path": mode,
        "delay_ms": delay_ms,
        "success": float(np.mean([one.solved for one in found])),
        "held_share": sum(one.held for one in found) / sum(one.ticks for one in found),
        **means,
        "added_jerk": added,
        "episodes": len(found),
        "by_task": {task: float(np.mean(solved)) for task, solved in tasks.items()},
    }


def measure(policy: Path, cfg: RolloutConfig, workers: int) -> Iterator[Row]:
    cells = [(mode, delay) for delay in DELAYS_MS for mode in get_args(Mode)]
    asked = {
        (mode, delay): jobs_of(policy, replace(cfg, mode=mode, delay_s=delay / 1000)) for mode, delay in cells
    }
    results = run_in_order(outcome, [job for jobs in asked.values() for job in jobs], workers)
    with track("delay", sum(map(len, asked.values()))) as bar:
        for (mode, delay), jobs in asked.items():
            found = []
            for _, one in islice(results, len(jobs)):
                found.append(one)
                bar.advance(note=f"{mode} at {delay} ms: {sum(one.solved for one in found)} of {len(found)}")
            yield row(mode, delay, jobs, found)


def targets(rows: list[Row]) -> list[Row]:
    """What was asked for, and what came of it: against no delay, and against the naive switch."""
    at = {(row["path"], row["delay_ms"]): row for row in rows}
    late = [at[mode, ASKED_MS] for mode in ("async", "reuse", "rtc")]
    best = max(late, key=lambda row: row["success"])
    lost = 100 * (at["async", 0]["success"] - best["success"])
    naive, ours = at["async", ASKED_MS], at["rtc", ASKED_MS]
    times = naive["added_jerk"] / max(ours["added_jerk"], NOTICED * ours["inner_jerk"])
    return [
        {
            "what": f"points of success lost at {ASKED_MS} ms, by {best['path']}",
            "target": 5.0,
            "found": lost,
            "met": lost < 5,
        },
        {
            "what": f"jerk that borders add to that within, async over rtc; none is {NOTICED:.0%} of it",
            "target": 5.0,
            "found": times,
            "met": times >= 5,
        },
    ]


def draw(rows: list[Row], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for mode in get_args(Mode):
        own = [one for one in rows if one["path"] == mode]
        delays: NDArray[np.float64] = np.array([one["delay_ms"] for one in own], float)
        left.plot(delays, [100 * one["success"] for one in own], "o-", label=mode)
        right.plot(delays, [one["border_jerk"] for one in own], "o-", label=mode)
    left.set(xlabel="delay of a chunk, ms", ylabel="solved, %", ylim=(0, 102))
    right.set(xlabel="delay of a chunk, ms", ylabel="jerk between chunks, action units / s^3", ylim=(0, None))
    left.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("policy", nargs="?", type=Path, default=ROOT / "runs/delay/checkpoints/step-009000")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--execute", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "results/delay.json")
    asked = parser.parse_args()
    cfg = replace(  # on seeds that neither training nor the demo's own rollouts used
        DemoConfig().rollout, seeds=asked.seeds, first_seed=100, max_s=6.0, execute=asked.execute, film=False
    )
    made_by = stamp("make bench-delay")  # before the picture changes the checkout
    rows = []
    for one in measure(asked.policy, cfg, asked.workers):
        rows.append(one)
        print("{path:6} {delay_ms:5} ms: {success:.0%} solved, jerk {border_jerk:.0f}".format(**one))
    draw(rows, asked.out.with_suffix(".png"))
    write_json(
        asked.out,
        {
            "rows": rows,
            "targets": targets(rows),
            "settings": asdict(cfg),
            **made_by,
            "versions": versions(),
        },
    )


if __name__ == "__main__":
    main()
