"""A run on the terminal: a panel that renews itself, or a line a second where there is no terminal."""

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite

from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tailorbird.control.runtime import Trace
from tailorbird.live.feed import Feed, Moment
from tailorbird.live.figures import RECENT, Figures, Series

REFRESH_HZ = 5
LINE_S = 1.0  # between two lines
BAR = 24  # columns
MISSED = "deadline missed"  # by a guard: the late ticks, which have a row of their own


@dataclass(kw_only=True)
class Ends:
    """What is kept of the episodes that came to their end: a run may have many."""

    episodes: int = 0
    solved: int = 0
    failures: Counter[str] = field(default_factory=Counter)  # of the policy, by what it said

    def add(self, trace: Trace) -> None:
        self.episodes += 1
        self.solved += trace.solved
        self.failures.update(trace.failures)


class View:
    """Shows the figures while they grow. On a terminal it draws from a thread of its own."""

    def __init__(self, console: Console, title: str, hz: float) -> None:
        """hz: the rate that is wanted."""
        self.figures = Figures()
        self._console, self._title, self._hz = console, title, hz
        self._lock = threading.Lock()
        self._began = self._printed = time.monotonic()
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(
                console=console, get_renderable=self.render, refresh_per_second=REFRESH_HZ, transient=True
            )
            self._live.start()

    def take(self, moment: Moment) -> None:
        with self._lock:
            self.figures.take(moment)
            if self._live is None and time.monotonic() - self._printed >= LINE_S:
                self._printed = time.monotonic()
                self._console.print(self._line())

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()

    def render(self) -> RenderableType:
        with self._lock:
            return Panel(self._rows(), title=Text(self._title), title_align="left", width=80)

    def _rows(self) -> RenderableType:
        one = self.figures
        rows = Table.grid(padding=(0, 2))
        rows.add_column(width=9, style="bold")
        rows.add_column()
        spent = time.monotonic() - self._began
        rows.add_row("episode", f"{one.episode}, {spent:.0f} s")
        rows.add_row("rate", f"{_number(one.hz(RECENT))} of {self._hz:g} Hz" + _lateness(one))
        rows.add_row("start", f"{_spread(one.start)} after a tick's time")
        rows.add_row("chunk", f"{_spread(one.latency)}, {one.latency.count} so far")
        stages = (f"{name} {_ms(s.percentile(50, RECENT))}" for name, s in one.stages.items())
        rows.add_row("stages", ", ".join(stages) or "-")
        rows.add_row("age", f"observation {_ms(one.age.last)}, scene {_ms(one.scene_age.last)}")
        rows.add_row("queue", _bar(one.left, one.room))
        rows.add_row("guard", _interventions(one))
        return rows

    def _line(self) -> str:
        one = self.figures
        return (
            f"{time.monotonic() - self._began:.0f} s: {_number(one.hz(RECENT))} Hz{_lateness(one)}, "
            f"chunk {_spread(one.latency)}, age {_ms(one.age.last)}, scene {_ms(one.scene_age.last)}, "
            f"{one.left} left, guard: {_interventions(one).plain}"
        )


def summary(one: Figures, counts: Mapping[str, int], ends: Ends, feed: Feed) -> Table:
    """The whole run as a table.

    counts: what the guard did, by name.
    """
    rows = Table("", "", show_header=False)
    rows.add_row(
        "ticks", f"{one.ticks}, {one.late} late ({one.late / max(1, one.ticks):.2%}), {one.held} held"
    )
    rows.add_row("rate", f"{_number(one.hz())} Hz")
    rows.add_row("start after a tick's time", f"{_spread(one.start, None)}")
    rows.add_row("chunk, asked to arrived", f"{_spread(one.latency, None)}, {one.latency.count}")
    for name, stage in one.stages.items():
        rows.add_row(f"- {name}", _spread(stage, None))
    rows.add_row("age of the observation", _spread(one.age, None))
    rows.add_row("age of the scene", _spread(one.scene_age, None))
    rows.add_row("guard", _counted({name: num for name, num in counts.items() if name != MISSED}))
    rows.add_row("episodes", f"{ends.episodes} to their end, {ends.solved} solved")
    for text, num in ends.failures.most_common(3):
        rows.add_row(f"the policy failed {num} times", text)
    for name, num in (("ticks not shown", feed.dropped), ("pictures not shown of", feed.unpictured)):
        if num:
            rows.add_row(name, f"{num} ticks")
    return rows


def _bar(left: int, room: int) -> Text:
    filled = round(BAR * left / max(1, room))
    return Text(f"{'#' * filled}{'.' * (BAR - filled)} {left} actions left")


def _interventions(one: Figures) -> Text:
    """Red while one is at work."""
    return Text(_counted(one.interventions), style="bold red" if one.doing else "")


def _counted(counts: Mapping[str, int]) -> str:
    """The most frequent first."""
    order = sorted((name for name, num in counts.items() if num), key=lambda name: -counts[name])
    return ", ".join(f"{name} {counts[name]}" for name in order) or "nothing to do"


def _lateness(one: Figures) -> str:
    return f", {one.late} of {one.ticks} ticks late, {one.held} held"


def _spread(values: Series, recent: int | None = RECENT) -> str:
    return f"p50 {_ms(values.percentile(50, recent))}, p99 {_ms(values.percentile(99, recent))}"


def _ms(seconds: float) -> str:
    if not isfinite(seconds):
        return "-"
    return f"{1e3 * seconds:.3g} ms" if seconds < 0.9995 else f"{seconds:.2f} s"


def _number(value: float) -> str:
    return f"{value:.1f}" if isfinite(value) else "-"
