"""Steps that would do harm: found before they change a weight, written down, and left out if so asked."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailorbird.storage import read_json, write_json
from tailorbird.train.lesson import Portion

NUM_RECENT, NUM_NEEDED = 100, 20  # losses that the median is taken of, and without which there is none
FILE = "bad_step.json"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a step came to. why: it was left out, "" if it was not."""

    loss: float
    norm: float
    losses: Sequence[Sequence[float]]  # of each portion the sums by source
    why: str = ""


def judge(loss: float, norm: float, recent: Sequence[float], spike: float) -> str:
    """Why a step must not change the weights, "" if it may."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(norm):
        return f"the gradient's norm is {norm}"
    if spike and len(recent) >= NUM_NEEDED:
        usual = statistics.median(recent)
        if usual > 0 and loss > spike * usual:
            return f"the loss is {loss:.4g}, the median of the last {len(recent)} steps {usual:.4g}"
    return ""


def parts_of(outcome: Outcome, portions: Sequence[Portion]) -> list[dict[str, Any]]:
    """The mean loss and the samples of each portion, as JSON."""
    parts: list[dict[str, Any]] = []
    for portion, sums in zip(portions, outcome.losses, strict=True):
        mean = sum(sums) / max(portion.weight, 1.0)
        parts.append({"loss": _said(mean), "samples": list(portion.names)})
    return parts


def write_down(run: Path, step: int, outcome: Outcome, parts: Sequence[dict[str, Any]]) -> Path:
    """Add a bad step to bad_step.json: what happened, and which samples it was computed from."""
    path = run / FILE
    before = read_json(path) if path.exists() else []
    now = {"step": step, "why": outcome.why, "loss": _said(outcome.loss), "norm": _said(outcome.norm)}
    write_json(path, [*(one for one in before if one["step"] < step), now | {"parts": list(parts)}])
    return path


def _said(value: float) -> float | str:
    """JSON has no infinity."""
    return value if math.isfinite(value) else str(value)


def named(parts: Sequence[dict[str, Any]], most: int = 10) -> str:
    """The samples of a step, for a message."""
    names = [name for part in parts for name in part["samples"]]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
