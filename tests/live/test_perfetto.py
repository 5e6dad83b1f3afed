"""A trace that Perfetto shows: all of the run, in order, nested, whatever ends it."""

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from watched import DELAY_S, HZ, LATE_TICK, STAGES, TICKS, played

from tailorbird.errors import StorageError
from tailorbird.live.feed import Feed, Moment
from tailorbird.live.trace import GUARD, LATE, LOOP, POLICY, TraceWriter

Event = dict[str, Any]


@pytest.fixture
def written(tmp_path: Path) -> tuple[list[Event], list[Moment]]:
    writer = TraceWriter(tmp_path / "run.json", "an arm")
    _, moments, _ = played(writer.take, episodes=2)
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    return json.loads((tmp_path / "run.json").read_text()), moments


def slices(events: list[Event], track: int) -> list[Event]:
    return [event for event in events if event["ph"] == "X" and event["tid"] == track]


def test_every_tick_is_there_and_late_ones_are_marked(written: tuple[list[Event], list[Moment]]) -> None:
    events, moments = written
    ticks = [event for event in slices(events, LOOP) if event["name"].startswith("tick")]
    assert [event["name"] for event in ticks] == [f"tick {i}" for i in range(TICKS)] * 2
    for event, moment in zip(ticks, moments, strict=True):
        assert event["dur"] == pytest.approx(1e6 * (moment.tick.ended_s - moment.tick.began_s), abs=2e-3)
        assert event["args"]["action"] == pytest.approx(moment.tick.action.tolist())
    late = slices(events, LATE)
    assert [event["name"] for event in late] == [f"tick {LATE_TICK} late"] * 2
    assert all(event["dur"] == pytest.approx(20_000, rel=0.3) for event in late)  # 70 ms and more in 50
    starts = [event for event in events if event["ph"] == "i" and event["tid"] == LOOP]
    assert [event["name"] for event in starts] == ["episode 0", "episode 1"]


def test_slices_nest_and_times_only_grow(written: tuple[list[Event], list[Moment]]) -> None:
    events, _ = written
    last: dict[Any, float] = defaultdict(float)
    for event in events:
        if "ts" in event:
            track = event.get("tid"), event["name"] if event["ph"] == "C" else ""
            assert event["ts"] >= last[track] >= 0
            last[track] = event["ts"]
    inside = []
    for track in (LOOP, LATE, POLICY):
        around: list[tuple[float, str]] = []
        for event in slices(events, track):
            while around and event["ts"] >= around[-1][0] - 1e-6:
                around.pop()
            end = event["ts"] + event["dur"]
            assert not around or end <= around[-1][0] + 1e-6
            inside += [(around[-1][1].split()[0], event["name"])] if around else []
            around.append((end, event["name"]))
    assert set(inside) == {("tick", "observe"), ("tick", "act"), *(("chunk", stage) for stage in STAGES)}


def test_a_chunk_lasts_from_its_question_to_its_arrival(written: tuple[list[Event], list[Moment]]) -> None:
    events, moments = written
    found = [event for event in slices(events, POLICY) if event["name"] == "chunk"]
    assert len(found) == sum(moment.tick.chunk is not None for moment in moments) > 8
    for event in found:
        assert event["args"]["latency_ms"] == pytest.approx(event["dur"] / 1e3)
        assert DELAY_S <= event["dur"] / 1e6 < DELAY_S + 1 / HZ + 0.07
        assert {name: event["args"][name] for name in STAGES} == STAGES


def test_counters_and_interventions_are_those_of_the_loop(written: tuple[list[Event], list[Moment]]) -> None:
    events, moments = written
    counted = [event for event in events if event["ph"] == "C"]
    left = [event["args"]["left"] for event in counted if event["name"] == "actions left"]
    assert left == [moment.tick.left for moment in moments]
    ages = [event["args"] for event in counted if event["name"] == "age, ms"]
    assert all(age["scene"] == pytest.approx(age["observation"] + 100) for age in ages)
    instants = [event["name"] for event in events if event["ph"] == "i" and event["tid"] == GUARD]
    assert instants == [name for moment in moments for name in moment.tick.interventions]
    assert set(instants) == {"position"}


def test_an_interrupted_run_leaves_a_whole_file(tmp_path: Path) -> None:
    def stop_at_tick_9(moment: Moment) -> None:
        feed.put(moment)
        if moment.tick.number == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Feed([TraceWriter(tmp_path / "run.json", "")]) as feed:
        played(stop_at_tick_9)
    names = [event["name"] for event in json.loads((tmp_path / "run.json").read_text())]
    assert "tick 9" in names
    assert "tick 10" not in names


def test_a_killed_process_leaves_a_list_without_its_end(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from tailorbird.live.trace import TraceWriter
from watched import played
writer = TraceWriter(Path("run.json"), "")
played(writer.take, episodes=3)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, timeout=60)
    assert done.returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".run.")
    events = json.loads(left.read_text().rpartition(",\n")[0] + "]")
    assert sum(event["name"].startswith("tick ") for event in events) > 2 * TICKS


def test_a_trace_that_cannot_be_written_is_refused_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises((StorageError, OSError)):
        TraceWriter(tmp_path / "file/run.json", "")
