"""What a robot gets: rate, misses, latency and ages, by mode, rate, cameras and way to see.

python bench/control_rates.py [--policy runs/demo/policy] [--quick]

Meta-World runs in real time in a process of its own (robots/metaworld.py), the policy in another; the loop
has neither. Two policies: the demo's, and one of smolvla_base's shape with random weights, as a load,
compiled by OpenVINO in bfloat16. It is asked again as soon as it has answered. Late is a tick that begins
more than 2 ms after its time. Writes results/control_rates.json: half an hour on two cores, 6 GB of
memory. With --quick a few cells, into runs/bench.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from math import isnan
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from tailorbird.control.clock import RealClock, first_in_line
from tailorbird.control.config import LoopConfig, Mode
from tailorbird.control.reuse import Reuse
from tailorbird.control.runtime import LATE_S, drive
from tailorbird.control.safety import Guard
from tailorbird.control.thinkers import Background, Elsewhere, Think
from tailorbird.infer.policy import load_policy
from tailorbird.model.config import Views
from tailorbird.model.sizes import SMOLVLA_BASE
from tailorbird.progress import track
from tailorbird.provenance import cores, stamp, versions
from tailorbird.recipes.run import SWITCH_S
from tailorbird.robots.metaworld import RealTimeConfig, RealTimeSim
from tailorbird.storage import write_json
from tailorbird.wire import Committed

ROOT = Path(__file__).parents[1]
TASK, SIZE = "push-v3", 192
SIM_CAMERAS = ("corner2", "topview", "corner", "corner3", "gripperPOV")
HZ = (10, 30, 50, 100)
DEMO, SMOLVLA = "demo", "smolvla_base"
SECONDS, FAST_SECONDS = 4.0, 12.0  # of a case; the fast one is the highest rate's
RARELY_S = 10.0  # between two scenes, so that most calls have the cores to themselves
Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What a process of the policy is made for; modes but reuse share one.

    refresh_s: of a policy that reuses its scene, as `Reuse` has it.
    """

    model: str
    cameras: int
    views: Views
    refresh_s: float | None = None


@dataclass(frozen=True)
class Case:
    setting: Setting
    mode: Mode
    hz: int


def cases(quick: bool) -> list[Case]:
    settings = [Setting(DEMO, 1, "joint", refresh_s) for refresh_s in (None, 0.0)]
    for cameras in (1, 3) if quick else (1, 3, 5):
        for views in ("joint", "mean") if cameras > 1 else ("joint",):
            settings += [Setting(SMOLVLA, cameras, views, refresh_s) for refresh_s in (None, 0.0, RARELY_S)]
    return [
        Case(setting, mode, hz)
        for setting in settings
        for mode in get_args(Mode)
        if (mode == "reuse") == (setting.refresh_s is not None)
        for hz in (HZ[-1:] if quick or setting.refresh_s == RARELY_S else HZ)
    ]


def make_think(setting: Setting, policy: Path) -> Think:
    """Runs in the policy's process."""
    torch.set_num_threads(max(1, cores() - 1))  # as in `tailorbird run`; OpenVINO has its own
    if setting.model == DEMO:
        mind = load_policy(policy, device="cpu")
    else:
        mind = load_random(setting.cameras, setting.views)
    return mind if setting.refresh_s is None else Reuse(mind, Background(mind.look), setting.refresh_s)


def load_random(cameras: int, views: Views) -> Any:
    from scaling import CAMERAS, build
    from tailorbird.infer.policy import Policy

    policy = build(replace(SMOLVLA_BASE, views=views, max_delay=SMOLVLA_BASE.chunk // 2))
    rename = dict(zip(SIM_CAMERAS, CAMERAS[:cameras], strict=False))
    return Policy(policy.model, replace(policy.pipeline, absent=CAMERAS[cameras:], rename=rename))


@contextmanager
def opened(setting: Setting, policy: Path) -> Iterator[tuple[RealTimeSim, Elsewhere]]:
    cfg = RealTimeConfig(task=TASK, cameras=SIM_CAMERAS[: setting.cameras], size=SIZE)
    make = partial(make_think, setting, policy)
    with closing(Elsewhere(make)) as thinker, closing(RealTimeSim(cfg)) as robot:
        seen, chunk = robot.observe(), None
        for _ in range(2):  # the first call pays for setting up, and so does the first that is guided
            committed = None if chunk is None else Committed(actions=chunk.actions, frozen=1)
            thinker.start(replace(seen, committed=committed))
            chunk = thinker.wait()
        yield robot, thinker


def run(case: Case, robot: RealTimeSim, thinker: Elsewhere) -> Row:
    thinker.reset()
    ticks = round((FAST_SECONDS if case.hz == HZ[-1] else SECONDS) * case.hz)
    guard = Guard(robot.limits, case.hz, clamped_chunks=ticks)  # random weights stay within no limits
    cfg = LoopConfig(hz=case.hz, execute=1, max_ticks=ticks, mode=case.mode)
    with first_in_line() as first:
        trace = drive(robot, thinker, RealClock(), cfg, guard=guard)
    return {
        "model": case.setting.model,
        "path": case.mode,
        "refresh_s": "" if case.setting.refresh_s is None else case.setting.refresh_s,
        "chunking": "" if case.mode != "rtc" else "guided" if case.setting.model == DEMO else "learned",
        "hz": case.hz,
        "first_in_line": first,
        "cameras": case.setting.cameras,
        "views": case.setting.views,
        "reached_hz": trace.ticks / trace.seconds,
        "late_share": (trace.late + trace.lost) / (trace.ticks + trace.lost),
        "held_share": trace.held / trace.ticks,
        **spread("latency_ms", [1e3 * value for value in trace.latency_s]),
        **spread("age_ms", [1e3 * value for value in trace.age_s]),
        **spread("scene_age_ms", [1e3 * value for value in trace.scene_age_s]),
        "chunk_ms": statistics.median(trace.chunk_ms),
        "chunks": len(trace.chunk_ms),
        "failures": len(trace.failures),
    }


def bare_late(hz: int, seconds: float) -> float:
    """Share of late ticks of a loop that does nothing: what this machine does to any."""
    clock, late, num = RealClock(), 0, round(seconds * hz)
    with first_in_line():
        began = clock.now()
        for number in range(num):
            clock.sleep_until(due := began + number / hz)
            late += clock.now() - due > LATE_S
    return late / num


def spread(name: str, values: Sequence[float]) -> Row:
    known = [value for value in values if not isnan(value)]
    found = map(float, np.percentile(known, (50, 99))) if known else (None, None)
    return dict(zip((f"{name}_p50", f"{name}_p99"), found, strict=True))


def targets(rows: Sequence[Row], bare: float) -> list[Row]:
    """What was asked for, and what came of it, for the large policy. bare: from `bare_late`."""
    large = [row for row in rows if row["model"] == SMOLVLA]
    fast = [row for row in large if row["hz"] == HZ[-1]]
    whole = {(row["cameras"], row["views"]): row["chunk_ms"] for row in fast if row["path"] == "async"}
    alone = [row for row in fast if row["refresh_s"] == RARELY_S]
    late = statistics.mean(row["late_share"] for row in fast)
    failures = sum(row["failures"] for row in rows)
    found = [
        {"what": "calls that failed", "target": 0, "found": failures, "met": failures == 0},
        {
            "what": f"share of late ticks at 100 Hz; of a loop that does nothing {bare:.2%}",
            "target": 1e-3,
            "found": late,
            "met": late <= 1e-3,
        },
    ]
    for row in alone:
        cameras, views = row["cameras"], row["views"]
        times = whole[cameras, views] / row["chunk_ms"]
        what = f"a call on a scene that was read before: so many times cheaper, {cameras} {views}"
        found.append({"what": what, "target": 4.0, "found": times, "met": times >= 4})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", type=Path, default=ROOT / "runs/demo/policy")
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    sys.setswitchinterval(SWITCH_S)
    todo, rows, bare = cases(asked.quick), list[Row](), list[float]()
    with track("control rates", len(todo)) as bar:
        for setting, own in groupby(todo, key=lambda case: case.setting):
            with opened(setting, asked.policy) as (robot, thinker):
                bare.append(bare_late(HZ[-1], SECONDS))
                for case in own:
                    rows.append(run(case, robot, thinker))
                    shown = (
                        "{model} {cameras} {views} {path} {hz} Hz: {reached_hz:.1f} Hz, late {late_share:.2%}"
                    )
                    bar.advance(note=shown.format(**rows[-1]))
    out = ROOT / ("runs/bench" if asked.quick else "results") / "control_rates.json"
    found = targets(rows, statistics.mean(bare))
    write_json(
        out,
        {
            "rows": rows,
            "targets": found,
            "bare_late_share": bare,
            **stamp("make bench-control"),
            "versions": versions(),
        },
    )
    for one in found:
        print("{what}: {found:.4g}, wanted {target:g}: ".format(**one) + ("met" if one["met"] else "missed"))


if __name__ == "__main__":
    main()
