"""Half an hour of driving at 50 Hz while everything around the loop breaks.

PYTHONPATH=tests python bench/soak.py [--policy runs/demo/policy] [--minutes 30] [--out FILE]

The loop drives Meta-World in real time, by a policy server over a socket, through the reconnecting client.
Every ten seconds something happens: the server stalls, or is killed and started again, answers late, with
what is not a number, in a wrong shape or far beyond the limits, or raises; or somebody stops the robot and
releases it. In every tick what was executed is compared with what the guard had to do. Writes
results/soak.json.
"""

import argparse
import itertools
import os
import random
import resource
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailorbird.client import PolicyClient
from tailorbird.control.clock import RealClock, first_in_line
from tailorbird.control.config import LoopConfig
from tailorbird.control.runtime import Tick, drive
from tailorbird.control.safety import Guard
from tailorbird.control.thinkers import Background
from tailorbird.errors import DataError
from tailorbird.progress import track
from tailorbird.provenance import stamp, versions
from tailorbird.recipes.run import SWITCH_S
from tailorbird.robots.metaworld import LIMITS, RealTimeConfig, RealTimeSim
from tailorbird.storage import write_json
from tailorbird.wire import ActionChunk, Observation
from tiny_server import Server, serving

ROOT = Path(__file__).parents[1]
HZ, MAX_AGE_S, EVERY_S = 50, 0.6, 10.0
Change = Callable[[ActionChunk], ActionChunk]


def late(chunk: ActionChunk) -> ActionChunk:
    time.sleep(1.0)
    return chunk


def raises(_: ActionChunk) -> ActionChunk:
    raise DataError("injected")


BAD_ANSWERS: dict[str, Change] = {
    "late answer": late,
    "error": raises,
    "not a number": lambda chunk: replace(chunk, actions=np.full_like(chunk.actions, np.nan)),
    "infinite": lambda chunk: replace(chunk, actions=np.full_like(chunk.actions, np.inf)),
    "far beyond": lambda chunk: replace(chunk, actions=1e6 * chunk.actions),
    "wrong shape": lambda chunk: replace(chunk, actions=chunk.actions[:, :-1]),
}


FAULTS = ("stalled server", "killed server", "emergency stop", *BAD_ANSWERS)


class Chaos:
    """Breaks one thing after the other, each for a while, in a thread of its own."""

    def __init__(self, policy: Path, guard: Guard, seed: int) -> None:
        self.kinds: Counter[str] = Counter()
        self.change: Change | None = None
        self.stopped_s: list[tuple[float, float]] = []  # when the robot was stopped, and released
        self._policy, self._guard, self._draw = policy, guard, random.Random(seed)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._servers = ExitStack()
        self._server = self._start()
        self._over, self._pool = threading.Event(), ThreadPoolExecutor(1)

    def __enter__(self) -> "Chaos":
        self._running = self._pool.submit(self._run)
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._pool.shutdown(wait=True)
        self._servers.close()
        self._running.result()  # what went wrong with breaking things

    def _start(self) -> Server:
        return self._servers.enter_context(serving(self._policy, "--port", self.port))

    def _run(self) -> None:
        rounds = (self._draw.sample(FAULTS, len(FAULTS)) for _ in itertools.count())  # all, in any order
        for kind in itertools.chain.from_iterable(rounds):
            if self._over.wait(EVERY_S):
                return
            self.kinds[kind] += 1
            seconds = self._draw.uniform(0.2, 3.0)
            if kind == "stalled server":
                os.kill(self._server.process.pid, signal.SIGSTOP)
                self._over.wait(seconds)
                os.kill(self._server.process.pid, signal.SIGCONT)
            elif kind == "killed server":
                self._servers.close()
                self._server = self._start()
            elif kind == "emergency stop":
                began = time.perf_counter()
                self._guard.stop("injected")
                self._over.wait(seconds)
                self.stopped_s.append((began, time.perf_counter()))
                self._guard.release()
            else:
                self.change = BAD_ANSWERS[kind]
                self._over.wait(seconds)
                self.change = None
                self._guard.release()  # it stops a robot whose policy is far beyond its limits


class Judge:
    """Notes every tick, to be held against what really happened."""

    def __init__(self) -> None:
        self.ticks: list[tuple[float, float, bool, bool]] = []  # due, began, moved, had no action in time
        self.out_of_limits = 0
        self.rss_mib: list[tuple[float, float]] = []

    def __call__(self, tick: Tick) -> None:
        moved = not np.array_equal(tick.action[:3], np.zeros(3))  # the grip is kept
        idle = tick.held or not tick.age_s <= MAX_AGE_S
        self.ticks.append((tick.due_s, tick.began_s, moved, idle))
        inside = (np.array(LIMITS.low) <= tick.action) & (tick.action <= np.array(LIMITS.high))
        self.out_of_limits += not inside.all()  # nor is a number that is none
        if tick.number % (10 * HZ) == 0:
            self.rss_mib.append((tick.began_s, rss_mib()))

    def missed_watchdogs(self, stops: Sequence[tuple[float, float]]) -> int:
        """Ticks that moved although there was no action in time, or the robot had been stopped."""
        missed = 0
        for _, began_s, moved, idle in self.ticks:
            stopped = any(start + 1 / HZ < began_s < end - 1 / HZ for start, end in stops)
            missed += moved and (idle or stopped)
        return missed

    def late_ms(self) -> NDArray[np.float64]:
        return np.array([1e3 * (began_s - due_s) for due_s, began_s, *_ in self.ticks])

    def drift_ms_per_min(self) -> float:
        """Of the ticks' beginnings against the clock, in ms a minute; periods that were lost are left out."""
        due_s, began_s = np.array([tick[:2] for tick in self.ticks]).T
        gaps = np.round(np.diff(due_s) * HZ) - 1  # whole periods: a slow drift is none
        ideal_s = np.arange(len(due_s)) / HZ
        ideal_s[1:] += np.cumsum(gaps) / HZ
        return float(np.polyfit(ideal_s / 60, 1e3 * (began_s - began_s[0] - ideal_s), 1)[0])

    def slope_mib_per_min(self) -> float:
        settled = np.array(self.rss_mib[len(self.rss_mib) // 5 :])
        return float(np.polyfit((settled[:, 0] - settled[0, 0]) / 60, settled[:, 1], 1)[0])


def rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


@contextmanager
def thinking(chaos: Chaos, client: PolicyClient) -> Iterator[Background[ActionChunk]]:
    def think(seen: Observation) -> ActionChunk:
        change, chunk = chaos.change, client(seen)
        return chunk if change is None else change(chunk)

    with closing(Background(think)) as thinker, closing(client):
        yield thinker


def soak(policy: Path, minutes: float, seed: int) -> dict[str, Any]:
    guard = Guard(LIMITS, HZ, max_age_s=MAX_AGE_S, failures=3, cool_down_s=0.5)
    judge, ticks = Judge(), round(60 * minutes * HZ)
    cfg = LoopConfig(hz=HZ, execute=2, max_ticks=ticks)
    robot = RealTimeSim(RealTimeConfig(task="push-v3", size=192))
    with closing(robot), Chaos(policy, guard, seed) as chaos, track("soak", ticks) as bar:
        client = PolicyClient(f"ws://127.0.0.1:{chaos.port}", timeout_s=0.5)
        with thinking(chaos, client) as thinker:

            def watch(tick: Tick) -> None:
                judge(tick)
                if tick.number % HZ == 0:
                    bar.advance(HZ, note=f"{sum(chaos.kinds.values())} faults")

            with first_in_line() as first:
                trace = drive(robot, thinker, RealClock(), cfg, guard=guard, watch=watch)
        stats = client.stats
    late_ms = np.percentile(judge.late_ms(), (50, 99, 100))
    return {
        "minutes": trace.seconds / 60,
        "first_in_line": first,
        "ticks": len(judge.ticks),
        "lost_ticks": trace.lost,
        "missed_watchdogs": judge.missed_watchdogs(chaos.stopped_s),
        "out_of_limits": judge.out_of_limits,
        "drift_ms_per_min": judge.drift_ms_per_min(),
        "late_ticks": trace.late,
        "tick_late_ms": dict(zip(("p50", "p99", "max"), map(float, late_ms), strict=True)),
        "held_share": trace.held / len(judge.ticks),
        "faults": dict(chaos.kinds),
        "guard": guard.report(),
        "chunks": len(trace.chunk_ms),
        "client": {"answered": stats.answered, "failed": stats.failed, "connections": stats.connections},
        "rss_slope_mib_per_min": judge.slope_mib_per_min(),
        "rss_mib": judge.rss_mib[-1][1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", type=Path, default=ROOT / "runs/demo/policy")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "results/soak.json")
    asked = parser.parse_args()
    sys.setswitchinterval(SWITCH_S)
    found = soak(asked.policy, asked.minutes, asked.seed)
    targets = [
        {
            "what": "ticks that moved though they had to hold",
            "target": 0,
            "found": found["missed_watchdogs"],
            "met": found["missed_watchdogs"] == 0,
        },
        {
            "what": "drift, ms a minute",
            "target": 1.0,
            "found": found["drift_ms_per_min"],
            "met": abs(found["drift_ms_per_min"]) < 1,
        },
        {
            "what": "kinds of faults that happened",
            "target": len(FAULTS),
            "found": len(found["faults"]),
            "met": len(found["faults"]) == len(FAULTS),
        },
    ]
    write_json(asked.out, {**found, "targets": targets, **stamp("make bench-soak"), "versions": versions()})
    for name in ("ticks", "faults", "missed_watchdogs", "out_of_limits", "drift_ms_per_min", "tick_late_ms"):
        print(f"{name}: {found[name]}")


if __name__ == "__main__":
    main()
