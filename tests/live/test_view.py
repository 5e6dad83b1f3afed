"""What the terminal shows of a run."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console
from watched import HZ, TICKS, played

from tailorbird.live import view as view_module
from tailorbird.live.feed import Feed
from tailorbird.live.figures import STAGES, Figures, Series
from tailorbird.live.view import Ends, View, summary


def text_of(console: Console, drawn: object) -> str:
    with console.capture() as caught:
        console.print(drawn)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", caught.get())


def test_the_panel_shows_the_figures_of_the_loop() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=90, height=30)
    view = View(console, "an arm, async", HZ)
    (trace,), moments, _ = played(view.take)
    drawn = text_of(console, view.render())
    view.close()
    assert "an arm, async" in drawn
    assert f"{trace.late} of {TICKS} ticks late, {trace.held} held" in drawn
    assert trace.late == 1
    assert f"position {trace.interventions['position']}" in drawn
    assert f"{moments[-1].tick.left} actions left" in drawn
    assert f"observation {1e3 * moments[-1].tick.age_s:.3g} ms" in drawn
    assert "prepare 20 ms, encode 60 ms, denoise 30 ms" in drawn
    assert float(re.search(r"([\d.]+) of 20 Hz", drawn)[1]) == pytest.approx(20, abs=0.1)  # type: ignore[index]
    assert max(map(len, drawn.splitlines())) <= 80
    assert "chunk" in screen.getvalue()  # it drew itself


def test_without_a_terminal_it_is_a_plain_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    view = View(Console(file=log, width=200), "an arm", HZ)
    played(view.take)
    assert log.getvalue() == ""  # all that took no second
    monkeypatch.setattr(view_module, "LINE_S", 0.0)
    played(view.take)
    view.close()
    lines = log.getvalue().splitlines()
    assert len(lines) == TICKS
    assert all(line.isascii() for line in lines)
    assert re.search(r"Hz, \d+ of \d+ ticks late, .* left, guard: position \d+$", lines[-1])


def test_the_summary_counts_all_episodes() -> None:
    figures = Figures()
    traces, moments, _ = played(figures.take, episodes=3)
    ends, feed = Ends(), Feed([])
    for trace in traces:
        ends.add(replace(trace, solved=True, failures=["the policy is away"]))
    feed.dropped, feed.unpictured = 4, 5
    drawn = text_of(Console(width=100), summary(figures, figures.interventions, ends, feed))
    assert figures.ticks == 3 * TICKS
    assert figures.late == sum(trace.late for trace in traces) == 3
    assert figures.hz() == pytest.approx(HZ, rel=0.01)
    assert figures.latency.count == sum(moment.tick.chunk is not None for moment in moments)
    assert figures.start.percentile(100) == pytest.approx(0.022)  # 2 + 70 ms in 50
    assert re.search(rf"ticks\W+{3 * TICKS}, 3 late \(3.33%\)", drawn)
    assert "3 to their end, 3 solved" in drawn
    assert re.search(r"the policy failed 3 times\W+the policy is away", drawn)
    assert re.search(r"ticks not shown\W+4", drawn)
    assert re.search(r"pictures not shown of\W+5", drawn)


def test_a_series_forgets_the_oldest_and_skips_what_is_no_number() -> None:
    values = Series(room=4)
    assert str(values.percentile(50)) == str(values.mean()) == "nan"
    for value in (9, float("nan"), 1, 2, float("inf"), 3, 4):
        values.add(value)
    assert (values.count, values.last, values.mean(), values.percentile(100)) == (5, 4, 2.5, 4)
    assert (values.mean(2), values.percentile(0, 2), values.percentile(0, 99)) == (3.5, 3, 1)


def test_a_server_that_invents_stages_does_not_fill_the_memory() -> None:
    figures = Figures()
    _, moments, _ = played(lambda _: None)
    chunked = next(moment for moment in moments if moment.tick.chunk is not None)
    assert chunked.tick.chunk is not None
    for i in range(2 * STAGES):
        chunk = replace(chunked.tick.chunk, infer_ms={f"stage {i}": 1.0})
        figures.take(replace(chunked, tick=replace(chunked.tick, number=i, chunk=chunk)))
    assert list(figures.stages) == [f"stage {i}" for i in range(STAGES)]
