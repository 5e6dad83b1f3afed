"""A run as a file that Perfetto and Chrome show: every tick, every chunk, what was held back and why.

The format is Chrome's list of trace events, written while the run goes on. A list without its end is valid
there, so even what a killed process leaves behind, under its temporary name, can be opened.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from math import isfinite
from pathlib import Path
from typing import Any

from tailorbird.control.runtime import LATE_S
from tailorbird.live.feed import Moment
from tailorbird.live.figures import arrival_s
from tailorbird.storage import explained, new_file

Event = dict[str, Any]
LOOP, LATE, POLICY, GUARD = 1, 2, 3, 4  # tracks, in the order in which they are shown
TRACKS = {
    LOOP: "loop: ticks, observing, acting",
    LATE: "late: from a tick's time to its start",
    POLICY: "policy: from a question to its chunk, stages inside",
    GUARD: "guard: interventions",
}


class TraceWriter:
    """Writes each moment as it comes. The file has its name once it is closed, whatever ended the run."""

    def __init__(self, path: Path, title: str) -> None:
        """Raises StorageError if it cannot be written."""
        self.path = path
        self._origin_s: float | None = None
        self._episode = -1
        self._began = False
        with ExitStack() as stack:
            temporary = stack.enter_context(new_file(path))
            self._file = stack.enter_context(temporary.open("w", encoding="ascii"))
            self._stack = stack.pop_all()
        self._write(_named("process_name", title))
        for track, name in TRACKS.items():
            self._write(_named("thread_name", name, track))
            self._write({**_named("thread_sort_index", "", track), "args": {"sort_index": track}})

    def take(self, moment: Moment) -> None:
        if self._origin_s is None:
            self._origin_s = min(_begin_s(moment), moment.tick.due_s)
        for event in _events(moment, new_episode=moment.episode != self._episode):
            self._write(event)
        self._episode = moment.episode

    def close(self) -> None:
        with explained(self.path):
            self._file.write("\n]\n")
        self._stack.close()

    def _write(self, event: Event) -> None:
        """Seconds of the loop's clock become microseconds since the first of them."""
        if "ts" in event:
            ts = self._nanoseconds(event["ts"])
            event = {**event, "ts": ts / 1000}
            if "end" in event:  # rounded before they are subtracted, or what nests would stick out
                event["dur"] = (self._nanoseconds(event.pop("end")) - ts) / 1000
        with explained(self.path):
            self._file.write(",\n" if self._began else "[\n")
            self._file.write(json.dumps({"pid": 1, **event}, allow_nan=False))
        self._began = True

    def _nanoseconds(self, time_s: float) -> int:
        assert self._origin_s is not None
        return round(1e9 * (time_s - self._origin_s))


def _events(moment: Moment, *, new_episode: bool) -> Iterator[Event]:
    tick = moment.tick
    if new_episode:
        yield {"ph": "i", "s": "g", "name": f"episode {moment.episode}", "ts": _begin_s(moment), "tid": LOOP}
    yield from (_slice(LOOP, s.name, s.began_s, s.ended_s) for s in moment.spans if s.ended_s <= tick.began_s)
    late_s = tick.began_s - tick.due_s
    facts = {
        "late_ms": 1e3 * late_s,
        "held": tick.held,
        "action": [float(value) for value in tick.action],
        **_finite({"observation age, ms": 1e3 * tick.age_s, "scene age, ms": 1e3 * tick.scene_age_s}),
    }
    yield _slice(LOOP, f"tick {tick.number}", tick.began_s, tick.ended_s, facts)
    yield from (_slice(LOOP, s.name, s.began_s, s.ended_s) for s in moment.spans if s.ended_s > tick.began_s)
    if late_s > LATE_S:
        yield _slice(LATE, f"tick {tick.number} late", tick.due_s, tick.began_s, {"late_ms": 1e3 * late_s})
    yield from _inference(moment)
    for name in tick.interventions:
        yield {"ph": "i", "s": "t", "name": name, "ts": tick.began_s, "tid": GUARD}
    yield {"ph": "C", "name": "actions left", "ts": tick.ended_s, "args": {"left": tick.left}}
    ages = _finite({"observation": 1e3 * tick.age_s, "scene": 1e3 * tick.scene_age_s})
    if ages:
        yield {"ph": "C", "name": "age, ms", "ts": tick.ended_s, "args": ages}


def _begin_s(moment: Moment) -> float:
    return min([span.began_s for span in moment.spans] + [moment.tick.began_s])


def _inference(moment: Moment) -> Iterator[Event]:
    """The chunk that arrived, with its stages one after the other from when it was asked for.

    What is left between the last stage and the arrival is waiting: for a process, a network, the next tick.
    """
    chunk, asked_s = moment.tick.chunk, moment.tick.asked_s
    if chunk is None:
        return
    arrived_s = arrival_s(moment)
    facts = {"actions": len(chunk.actions), "latency_ms": 1e3 * (arrived_s - asked_s)}
    yield _slice(POLICY, "chunk", asked_s, arrived_s, {**facts, **chunk.infer_ms})
    began_s = asked_s
    for stage, ms in chunk.infer_ms.items():
        ended_s = min(began_s + ms / 1e3, arrived_s)
        yield _slice(POLICY, stage, began_s, ended_s)
        began_s = ended_s


def _slice(track: int, name: str, began_s: float, ended_s: float, facts: Event | None = None) -> Event:
    event = {"ph": "X", "name": name, "ts": began_s, "end": ended_s, "tid": track}
    return event if facts is None else {**event, "args": facts}


def _named(kind: str, name: str, track: int = 0) -> Event:
    return {"ph": "M", "name": kind, "tid": track, "args": {"name": name}}


def _finite(facts: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in facts.items() if isfinite(value)}
