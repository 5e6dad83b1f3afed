"""What `verify` found, as a table for the terminal and as a picture."""

import io
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.table import Table

from tailorbird.errors import ConfigError
from tailorbird.evals.course import Course
from tailorbird.evals.verify import Verdict
from tailorbird.storage import new_file

MOST = 8  # action values that are drawn


def table(verdict: Verdict) -> Table:
    cfg = verdict.cfg
    title = f"{verdict.model}, {cfg.engine} in {cfg.dtype} against {verdict.against}"
    rows = Table("", "found", "limit", "", title=title)
    rows.columns[1].justify = "right"
    checks = verdict.checks()
    judged = {name for name, *_ in checks}
    for name, value in vars(verdict.distance).items():
        if name not in judged:
            rows.add_row(name, _number(name, value), "", "")
    rows.add_row("batch_error", _number("batch_error", verdict.behaviour.batch_error), "", "")
    for name, found, limit, kept in checks:
        if found is None:
            rows.add_row(name, "n/a", "one camera", "")
        else:
            rows.add_row(name, _number(name, found), limit, "pass" if kept else "FAIL")
    rows.caption = f"{cfg.scenes} scenes, {cfg.runs} runs; states from {verdict.states_from}"
    return rows


def _number(name: str, value: float) -> str:
    return f"{value:.8f}" if "pcc" in name or name == "batch_invariant" else f"{value:.3g}"


def check_plot(path: Path) -> None:
    """Raises ConfigError if no picture can be drawn under this name."""
    if path.suffix != ".png":
        raise ConfigError(f"--plot {path}: the picture is a PNG, name a file that ends in .png")
    if find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib: pip install 'tailorbird[report]'")


def draw(verdict: Verdict, path: Path) -> None:
    """Actions of both sides in the first scene, and how far the velocities drift apart on the way."""
    import matplotlib.pyplot as plt

    from tailorbird.evals.plots import BLUE, GREY, ORANGE, STYLE

    tested, truth, hz = verdict.tested, verdict.truth, verdict.hz
    num = min(MOST, tested.actions.shape[-1])
    columns = min(4, num)
    lines = -(-num // columns)
    place = [i / hz for i in range(tested.actions.shape[1])] if hz else list(range(tested.actions.shape[1]))
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(2.6 * columns, 1.9 * lines + 2.4), layout="constrained")
        grid = figure.add_gridspec(lines + 1, columns)
        for i in range(num):
            ax = figure.add_subplot(grid[i // columns, i % columns])
            label = verdict.against if verdict.against in ("fp32", "reference") else "stored"
            ax.plot(place, truth.actions[0, :, i], color=GREY, lw=4, alpha=0.6, label=label)
            ax.plot(place, tested.actions[0, :, i], color=BLUE, lw=1.2, label=verdict.cfg.dtype)
            ax.set_title(f"action value {i}, physical units", fontsize=8, loc="left")
            ax.set_xlabel("s" if hz else "step of the chunk", fontsize=8)
            ax.tick_params(labelsize=8)
            if i == 0:
                ax.legend(fontsize=8, frameon=False)
        ax = figure.add_subplot(grid[lines, :])
        error = _error_by_call(tested, truth)
        calls = range(1, len(error) + 1)
        ax.semilogy(calls, error.clamp(min=1e-9), color=ORANGE, marker="o", ms=4)
        ax.set_xlabel("call of the network, from noise to actions")
        ax.set_ylabel("largest error of the\nvelocity, normalised", fontsize=9)
        title = f"{verdict.model}: correlation {verdict.distance.pcc_full:.8f} on the full way"
        figure.suptitle(title, fontsize=10)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=130)
        plt.close(figure)
    with new_file(path) as temporary:
        temporary.write_bytes(out.getvalue())


def _error_by_call(tested: Course, truth: Course) -> torch.Tensor:
    return (tested.velocities - truth.velocities).abs().flatten(1).amax(1)  # (K)
