"""One line of progress at a time: live on a terminal, one line now and then in a log file."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LOG_EVERY_S = 15.0
console = Console(highlight=False, soft_wrap=True, markup=False)


class Bar:
    """A running count. `note` is free text at the end of the line: a loss, a success rate."""

    def __init__(self, label: str, total: int, done: int, live: Progress | None) -> None:
        self.label, self.total, self.done, self.note = label, total, done, ""
        self._live = live
        self._task = live.add_task(label, total=total, completed=done, note="") if live else None
        self._started = self._printed = time.monotonic()
        self._first = done

    def advance(self, num: int = 1, note: str | None = None) -> None:
        self.done += num
        self.note = self.note if note is None else note
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=self.done, note=self.note)
        elif time.monotonic() - self._printed >= LOG_EVERY_S:
            self._printed = time.monotonic()
            console.print(self._line())

    def finish(self) -> None:
        console.print(f"{self._line()}, {time.monotonic() - self._started:.0f} s")

    def _line(self) -> str:
        spent = time.monotonic() - self._started
        fresh = self.done - self._first
        left = f", {spent / fresh * (self.total - self.done):.0f} s left" if 0 < fresh < self.total else ""
        left = left if self.done < self.total else ""
        return f"{self.label}: {self.done}/{self.total}{left}" + (f"  {self.note}" if self.note else "")


@contextmanager
def track(label: str, total: int, done: int = 0) -> Iterator[Bar]:
    """Show the progress of a block; its last state stays on the screen as one line."""
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=console, transient=True) as live:
            bar = Bar(label, total, done, live)
            yield bar
    else:
        bar = Bar(label, total, done, None)
        yield bar
    bar.finish()
