"""Frame rate of fast pictures against faithful ones, side by side, and how far apart the pictures are.

python bench/render.py        prints a table and writes results/render.json
"""

import statistics
import time
from pathlib import Path

import numpy as np

from tailorbird.provenance import stamp, versions
from tailorbird.sim.config import SimConfig
from tailorbird.sim.expert import ScriptedExpert
from tailorbird.sim.metaworld import MetaWorld
from tailorbird.storage import write_json

SIZES, STEPS = (192, 480), 60  # px, frames of each kind
OUT = Path(__file__).parents[1] / "results/render.json"


def measure(size: int) -> dict[str, float]:
    """One demonstration; at each step both pictures are taken, the first of the two in turn."""
    env, expert = MetaWorld("push-v3", SimConfig(size=size)), ScriptedExpert("push-v3")
    env.restart(0)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    apart = []
    for step in range(STEPS):
        pictures = {}
        for fast in (step % 2 == 0, step % 2 == 1):
            began = time.perf_counter()
            pictures[fast] = env.photograph(size, fast=fast)
            seconds[fast].append(time.perf_counter() - began)
        apart.append(np.abs(pictures[True].astype(int) - pictures[False]).mean())
        env.advance(expert.act(env))
    env.close()
    fast_s, faithful_s = (statistics.median(seconds[kind][4:]) for kind in (True, False))
    return {
        "fast_ms": 1e3 * fast_s,
        "faithful_ms": 1e3 * faithful_s,
        "ratio": faithful_s / fast_s,
        "mean_difference_of_255": float(np.mean(apart)),
    }


def main() -> None:
    rows = {f"{size} px": measure(size) for size in SIZES}
    for name, row in rows.items():
        print(name, ", ".join(f"{key} {value:.2f}" for key, value in row.items()))
    write_json(OUT, {"render": rows, **stamp("make bench"), "versions": versions()})


if __name__ == "__main__":
    main()
