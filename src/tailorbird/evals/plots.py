"""The report's pictures, as SVG text: sharp at any size, small, and they need no script."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from tailorbird.evals.results import LABELS

BLUE, ORANGE, GREY, GREEN = "#2f6f9f", "#d9772b", "#8a8f98", "#4b9b6e"
COLOURS = {"normal": BLUE, "shuffled": ORANGE, "black": "#3a3a3a", "untrained": GREY}
STYLE = {
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e6ea",
    "axes.axisbelow": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "tailorbird",
}
THEME = {  # what is drawn in these becomes the page's own colours, which change with the reader's screen
    "#010101": "var(--ink)",
    "#020202": "var(--soft)",
    "#030303": "var(--line)",
    **{f"#0{i}0000": f"var(--{letter})" for i, letter in enumerate("abcdef", 1)},
}
CYCLE = tuple(THEME)[3:]
THEMED = {
    **STYLE,
    "text.color": "#010101",
    "xtick.color": "#020202",
    "ytick.color": "#020202",
    "axes.edgecolor": "#030303",
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": "#030303",
}


class Line(NamedTuple):
    label: str
    steps: Sequence[float]
    values: Sequence[float]


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :]


def plot_success(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Bars by task and condition, with 95 % intervals. runs: condition -> what `rollout.summarise` gave."""
    tasks = list(runs["normal"]["by_task"])
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(8.6, 3.0))
        width = 0.8 / len(runs)
        for i, (condition, run) in enumerate(runs.items()):
            rows = [run["by_task"][task] for task in tasks]
            rates = [100 * row["success"] for row in rows]
            below = [rate - 100 * row["low"] for rate, row in zip(rates, rows, strict=True)]
            above = [100 * row["high"] - rate for rate, row in zip(rates, rows, strict=True)]
            places = [t + (i - (len(runs) - 1) / 2) * width for t in range(len(tasks))]
            ax.bar(places, rates, width * 0.9, color=COLOURS[condition], label=LABELS[condition])
            ax.errorbar(
                places, rates, [below, above], fmt="none", ecolor="#00000066", elinewidth=1, capsize=2
            )
        ax.set_xticks(range(len(tasks)), [task.removesuffix("-v3") for task in tasks], fontsize=8.5)
        ax.set_ylabel("solved, %")
        ax.set_ylim(0, 104)
        ax.grid(visible=False, axis="x")
        ax.legend(ncols=len(runs), loc="upper center", bbox_to_anchor=(0.5, 1.2), frameon=False, fontsize=9)
        return _svg(figure)


def plot_learning(rows: Sequence[Mapping[str, float]]) -> str:
    """Training and held-out loss, and the held-out action error, over steps. rows: of metrics.jsonl."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 2.7))
        for ax, key, colour, label in (
            (left, "loss", BLUE, "training"),
            (left, "held_out_loss", ORANGE, "held-out episodes"),
            (right, "action_error", ORANGE, "held-out episodes"),
        ):
            points = [(row["step"], row[key]) for row in rows if key in row]
            steps, values = [step for step, _ in points], [value for _, value in points]
            marker = "" if len(points) > 40 else "o"
            ax.plot(steps, values, color=colour, label=label, lw=1.2, marker=marker, ms=3, clip_on=False)
        left.set_ylabel("flow-matching loss")
        right.set_ylabel("mean error of an action")
        left.set_ylim(bottom=0)
        right.set_ylim(bottom=0)
        for ax in (left, right):
            ax.set_xlabel("step")
            ax.legend(frameon=False, fontsize=9)
        figure.tight_layout()
        return _svg(figure)


def plot_actions(
    actions: Sequence[Sequence[float]], expert: Sequence[Sequence[float]], names: Sequence[str], hz: float
) -> str:
    """The policy's actions (blue), and the expert's in the same states (grey), one panel a dimension."""
    times = [tick / hz for tick in range(len(actions))]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(names), figsize=(8.6, 1.5), sharex=True, sharey=True)
        for i, (ax, name) in enumerate(zip(axes, names, strict=True)):
            for who, colour in ((expert, GREY), (actions, BLUE)):
                ax.step(times, [action[i] for action in who], where="post", color=colour, lw=1.3)
            ax.set_title(name, fontsize=9, loc="left")
            ax.set_ylim(-1.25, 1.25)
            ax.set_xlabel("s", fontsize=8)
            ax.tick_params(labelsize=8)
        figure.tight_layout(pad=0.4)
        return _svg(figure)


def plot_latency(chunk_ms: Sequence[float], tick_ms: float) -> str:
    """Histogram of what a chunk costs, with the length of a control tick for comparison."""
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(8.6, 2.2))
        most = sorted(chunk_ms)[int(0.995 * (len(chunk_ms) - 1))]
        ax.hist([ms for ms in chunk_ms if ms <= most], bins=60, color=BLUE)
        ax.axvline(tick_ms, color=ORANGE, lw=1.5)
        place = (tick_ms, ax.get_ylim()[1])
        ax.annotate(f"one tick, {tick_ms:.0f} ms ", place, color=ORANGE, fontsize=9, va="top", ha="right")
        ax.set_xlim(left=0)
        ax.set_xlabel("ms for one chunk, the slowest 0.5 % left out")
        ax.set_ylabel("chunks")
        return _svg(figure)


def plot_lines(lines: Sequence[Line]) -> str:
    """Figures over steps, in the colours of the page around them: --ink, --soft, --line, --a to --f."""
    with plt.rc_context(THEMED):
        figure, ax = plt.subplots(figsize=(4.6, 2.5))
        for number, line in enumerate(lines):
            style = ("-", "--", ":")[number // len(CYCLE) % 3]
            marker = "" if len(line.steps) > 40 else "o"
            colour = CYCLE[number % len(CYCLE)]
            label = line.label.replace("$", r"\$")  # between two of them stands a formula
            ax.plot(line.steps, line.values, style, color=colour, label=label, lw=1.3, marker=marker, ms=3)
        ax.set_xlabel("step", color="#020202", fontsize=9)
        if len(lines) > 1:
            ax.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
        text = _svg(figure)
    for drawn, shown in THEME.items():
        text = text.replace(drawn, shown)
    return text
