"""One policy server under 64 robots: errors, fairness, memory, what it adds to the model; and a kill.

python bench/server_load.py [POLICY]

POLICY: runs/demo/policy, or, without a demo, one of its size with random weights. Prints a table and writes
results/server_load.json: three minutes on two cores, which the robots (one process) and the server share. A
robot asks at a rate at which the model can serve all of them; its requests are openpi's with the tag of
`tailorbird.client`. What the server adds is the round trip as the robot sees it, less what the answer says
was waiting and the model; how late a timer of the robots' process is says what of it is the machine's. Then
the server is killed while 64 of our own clients ask, and started again. Last, copies of the policy on Ray
are asked as fast as they answer.
"""

import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from websockets.asyncio.client import connect

from tailorbird.client import PolicyClient
from tailorbird.codec import Caps, Tag, decode_answer, encode_observation, unpack
from tailorbird.errors import ConnectionLost
from tailorbird.perf.results import tables
from tailorbird.progress import console
from tailorbird.provenance import stamp, versions
from tailorbird.storage import write_json
from tailorbird.wire import Observation

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "runs/demo/policy"
PAUSE_S = 0.02
OVERHEAD_MS, JAIN, GROWTH_MIB = 5.0, 0.95, 10.0
SIDE = 96  # px of the robots' pictures
STATE, TASK = 4, "push the puck to the target"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """share: of what the model can do, that robots ask for. away_s: between the kill and the new start.

    copies: of the policy, in processes of their own.
    """

    robots: int = 64
    seconds: float = 60.0
    share: float = 0.5
    away_s: float = 2.0
    faults_s: float = 14.0
    copies: tuple[int, ...] = (1, 2)


class Server:
    """A process of `tailorbird serve policy` that can be killed and started again on its port."""

    def __init__(self, policy: Path, *options: str) -> None:
        self._words = [sys.executable, "-m", "tailorbird", "serve", "policy", str(policy), *options]
        self.port = 0
        self.start()

    def start(self) -> None:
        words = [*self._words, "--port", str(self.port)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.search(r"ws://[^\s:]+:(\d+)", line):
                self.port = int(found.group(1))
                return
        sys.exit("the server did not start")

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def rss_mib(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def serving(policy: Path, *options: str) -> Iterator[Server]:
    server = Server(policy, *options)
    try:
        yield server
    finally:
        server.kill()


def observe(number: int, cameras: Sequence[str]) -> Observation:
    rng = np.random.default_rng(number)
    pictures = {name: rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for name in cameras}
    return Observation(images=pictures, state=rng.normal(size=STATE).astype(np.float32) / 10, task=TASK)


@dataclass
class Robot:
    """What one of them went through."""

    trip_ms: list[float] = field(default_factory=list)
    added_ms: list[float] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)


async def ask(server: Server, number: int, cameras: Sequence[str], hz: float, until_s: float) -> Robot:
    """At a rate, from a moment of its own on; `hz` 0 is again as soon as there is an answer."""
    robot, seen = Robot(), observe(number, cameras)
    async with connect(server.url, compression=None, proxy=None) as socket:
        session = unpack(await socket.recv(), Caps())["session"]
        due_s, seq = time.monotonic() + (number * 0.618 % 1) / hz if hz else 0.0, 0
        while time.monotonic() < until_s:
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            seq += 1
            message = encode_observation(seen, Tag(session=session, seq=seq))
            began = time.perf_counter()
            await socket.send(message)
            told = await socket.recv()
            trip_ms = 1e3 * (time.perf_counter() - began)
            answered = decode_answer(unpack(told, Caps())) if isinstance(told, bytes) else None
            if answered is None or answered.chunk is None:
                robot.failed[answered.code if answered else "text"] += 1
                continue
            robot.trip_ms.append(trip_ms)
            server_ms = answered.server_ms
            robot.added_ms.append(trip_ms - server_ms["queue_ms"] - server_ms["infer_ms"])
            due_s = max(due_s + 1 / hz, time.monotonic()) if hz else 0.0
    return robot


@dataclass
class Watch:
    """The server's memory, and how late a timer here was, meanwhile."""

    rss_mib: list[tuple[float, float]] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)

    async def run(self, server: Server) -> None:
        while True:
            now = time.monotonic()
            self.rss_mib.append((now, server.rss_mib()))
            await asyncio.sleep(PAUSE_S)
            self.late_ms.append(1e3 * (time.monotonic() - now - PAUSE_S))


async def crowd(
    server: Server, cameras: Sequence[str], plan: Plan, hz: float, seconds: float
) -> tuple[list[Robot], Watch]:
    """All robots at once."""
    until_s, watch = time.monotonic() + seconds, Watch()
    watching = asyncio.create_task(watch.run(server))
    each = (ask(server, number, cameras, hz, until_s) for number in range(plan.robots))
    robots = await asyncio.gather(*each)
    watching.cancel()
    return robots, watch


def percentile(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(values, percent))


def jain(shares: Sequence[float]) -> float:
    """1 when all get the same, 1/n when one gets everything."""
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


def load_row(name: str, robots: Sequence[Robot], seconds: float, watch: Watch) -> dict[str, Any]:
    trips, added = ([ms for one in robots for ms in getattr(one, what)] for what in ("trip_ms", "added_ms"))
    (first_s, first_mib), (last_s, last_mib) = watch.rss_mib[len(watch.rss_mib) // 4], watch.rss_mib[-1]
    worst = [percentile(one.trip_ms, 99) for one in robots]
    return {
        "load": name,
        "answers": len(trips),
        "per_s": len(trips) / seconds,
        "errors": sum(sum(one.failed.values()) for one in robots),
        "trip_ms_p50": percentile(trips, 50),
        "trip_ms_p99": percentile(trips, 99),
        "robots_p99_ms": [min(worst), statistics.median(worst), max(worst)],
        "jain_answers": jain([len(one.trip_ms) for one in robots]),
        "jain_latency": jain([statistics.median(one.trip_ms) for one in robots]),
        "added_ms_p50": percentile(added, 50),
        "added_ms_p99": percentile(added, 99),
        "timer_late_ms_p99": percentile(watch.late_ms, 99),
        "rss_mib": [first_mib, last_mib],
        "rss_mib_per_minute": 60 * (last_mib - first_mib) / max(last_s - first_s, PAUSE_S),
    }


@dataclass
class Witness:
    """One of our own clients, in a thread, while the server goes and comes. Times are of one clock."""

    chunks: int = 0
    lost: int = 0
    cached: int = 0
    old: int = 0
    back_s: float | None = None
    why: str = ""


def witness(server: Server, number: int, cameras: Sequence[str], hz: float, back: "Back") -> Witness:
    """Ask at a rate; begin a new episode, with a picture of its own, while the server is away.

    A chunk is of an old episode when its observation is older than the episode.
    """
    found, seen = Witness(), observe(number, cameras)
    client = PolicyClient(server.url, timeout_s=2.0, hz=20.0)
    client.reset(number)
    episode_s, is_new = time.monotonic(), False
    try:
        while time.monotonic() < back.until_s:
            if back.killed_s is not None and not is_new:
                client.reset(number + 1000)
                episode_s, is_new = time.monotonic(), True
            now = time.monotonic()
            before = client.stats.answered
            try:
                chunk = client(replace(seen, time_s=now))
            except ConnectionLost:
                found.lost += 1
            else:
                found.chunks += 1
                found.old += chunk.time_s < episode_s
                if (
                    is_new
                    and back.ready_s is not None
                    and found.back_s is None
                    and client.stats.answered > before
                ):
                    found.back_s = time.monotonic() - back.ready_s
            time.sleep(max(0.0, now + 1 / hz - time.monotonic()))
    except Exception as error:  # of a thread; reported with the result
        found.why = repr(error)
    found.cached = client.stats.cached
    client.close()
    return found


@dataclass
class Back:
    """When the server was killed, and there again."""

    until_s: float
    killed_s: float | None = None
    ready_s: float | None = None


def faults(server: Server, cameras: Sequence[str], plan: Plan, hz: float) -> dict[str, Any]:
    """Kill the server under load, start it again on its port, and see who comes back."""
    began = time.monotonic()
    back, found = Back(began + plan.faults_s + plan.away_s), list[Witness]()

    def run(number: int) -> None:
        found.append(witness(server, number, cameras, hz, back))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(plan.robots)]
    for thread in threads:
        thread.start()
    time.sleep(plan.faults_s / 3)
    server.kill()
    back.killed_s = time.monotonic()
    time.sleep(plan.away_s)
    server.start()
    back.ready_s = time.monotonic()
    back.until_s = back.ready_s + 2 * plan.faults_s / 3
    for thread in threads:
        thread.join()
    times = [one.back_s for one in found if one.back_s is not None]
    return {
        "robots": len(found),
        "recovered": len(times),
        "away_s": back.ready_s - back.killed_s,
        "recovery_s_p50": percentile(times, 50) if times else None,
        "recovery_s_max": max(times, default=None),
        "old_episode_chunks": sum(one.old for one in found),
        "calls_without_a_chunk": sum(one.lost for one in found),
        "calls_from_the_chunk_at_hand": sum(one.cached for one in found),
        "errors": [one.why for one in found if one.why],
    }


def demo_sized(folder: Path) -> Path:
    """A policy of the demo's size, untrained: what it costs is the same."""
    from tailorbird.checkpoint.policy import write_policy
    from tailorbird.model.init import initialise
    from tailorbird.model.sizes import TINY
    from tailorbird.model.vla import VLA
    from tailorbird.processing.image import ImageSpec
    from tailorbird.processing.normalize import Normalizer
    from tailorbird.processing.pipeline import Pipeline
    from tailorbird.processing.text import InstructionTokenizer, train_tokenizer
    from tailorbird.sim.tasks import INSTRUCTIONS

    cfg = replace(TINY, state_dim=STATE, action_dim=STATE)
    model, values = VLA(cfg), Normalizer(mean=(0.0,) * STATE, std=(1.0,) * STATE)
    initialise(model, 0)
    words = train_tokenizer([*INSTRUCTIONS.values()], cfg.vlm.decoder.vocab)
    pipeline = Pipeline(
        cameras=("corner2",),
        image=ImageSpec(size=cfg.vlm.vision.image_size),
        state=values,
        action=values,
        tokenizer=InstructionTokenizer(words, 48),
        hz=20.0,
    )
    folder.mkdir(parents=True)
    write_policy(folder, model.state_dict(), cfg, pipeline)
    return folder


def copies_row(policy: Path, num: int, cameras: Sequence[str], plan: Plan) -> dict[str, Any]:
    """One copy is in the server's own process, as without Ray."""
    with serving(policy, "--replicas", str(num)) as server:
        asyncio.run(crowd(server, cameras, plan, 0.0, plan.seconds / 4))  # warms up what every copy compiles
        robots, watch = asyncio.run(crowd(server, cameras, plan, 0.0, plan.seconds))
    return load_row(f"{num} {'copy' if num == 1 else 'copies on Ray'}", robots, plan.seconds, watch)


def target(what: str, wanted: float, found: float, met: bool) -> dict[str, Any]:
    return {"what": what, "target": wanted, "found": found, "met": met}


def measure(policy: Path, plan: Plan) -> dict[str, Any]:
    cameras = ("corner2",)
    with serving(policy) as server:
        few = replace(plan, seconds=plan.seconds / 6)
        busy, watch = asyncio.run(crowd(server, cameras, few, 0.0, few.seconds))
        most = sum(len(one.trip_ms) for one in busy) / few.seconds
        rows = [load_row("as fast as it answers", busy, few.seconds, watch)]
        hz = plan.share * most / plan.robots
        robots, watch = asyncio.run(crowd(server, cameras, plan, hz, plan.seconds))
        rows.insert(0, load_row(f"{hz:.2f} Hz each", robots, plan.seconds, watch))
        fault = faults(server, cameras, plan, hz)
    rows += [copies_row(policy, num, cameras, few) for num in plan.copies]
    served = rows[0]
    minutes = plan.seconds / 60
    errors = sum(row["errors"] for row in rows)
    added, growth = served["added_ms_p99"], served["rss_mib_per_minute"] * minutes
    fairness, old = min(row["jain_latency"] for row in rows), fault["old_episode_chunks"]
    back = fault["recovered"] if not fault["errors"] else 0
    targets = [
        target("errors in answers", 0, errors, errors == 0),
        target("ms that the server adds, p99", OVERHEAD_MS, added, added <= OVERHEAD_MS),
        target("Jain's index of median latencies, at least", JAIN, fairness, fairness >= JAIN),
        target("MiB that memory grows", GROWTH_MIB, growth, growth < GROWTH_MIB),
        target("robots that recover from a kill", plan.robots, back, back == plan.robots),
        target("chunks of an old episode", 0, old, old == 0),
    ]
    return {"rows": rows, "faults": fault, "targets": targets, "robots": plan.robots, "seconds": plan.seconds}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        named = Path(sys.argv[1]) if len(sys.argv) > 1 else DEMO
        is_there = named.exists()
        result = measure(named if is_there else demo_sized(Path(folder) / "policy"), Plan())
    model = (
        f"{named.relative_to(ROOT) if named.is_relative_to(ROOT) else named}"
        if is_there
        else "demo-sized, random weights"
    )
    out = ROOT / "results/server_load.json"
    write_json(out, {"model": model, **result, **stamp("make bench-server"), "versions": versions()})
    for part in tables(out, "server"):
        console.print(part)
    console.print(json.dumps(result["faults"], indent=1))


if __name__ == "__main__":
    main()
