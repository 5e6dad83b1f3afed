"""One page about a training run: curves, what was dropped, answers before and after, settings.

It needs no network and no script, and is light or dark as the reader's screen is.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from tailorbird.errors import DataError
from tailorbird.evals.plots import Line, plot_lines
from tailorbird.storage import new_file, read_json
from tailorbird.train.log import count_unusable, read_metrics

PANELS = (  # title, figures that it shows, exactly or as a prefix
    ("loss", ("loss", "held_out_loss")),
    ("loss of each source", ("loss/",)),
    ("held-out loss of each source", ("held_out_loss/",)),
    ("learning rate", ("lr", "lr/")),
    ("tokens a second", ("tokens_s",)),
    ("samples a second", ("samples_s",)),
    ("share of padding, and of time waiting for data", ("padding", "wait")),
    ("share of the device's peak", ("mfu",)),
    ("gradient norm", ("norm",)),
    ("held-out error of an action", ("action_error",)),
)


def write_train_report(run: Path) -> Path:
    """Make report.html from metrics.jsonl and what else there is in the folder of a training run.

    Raises:
        DataError: there are no metrics.
    """
    rows = read_metrics(run)
    if not rows:
        raise DataError(f"{run} has no metrics.jsonl: give the folder that a training run wrote to")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tailorbird.evals", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    facts = _facts(run)
    page = environment.get_template("train_report.html.j2").render(
        name=run.resolve().name,
        cards=_cards(rows, facts),
        panels=_panels(rows),
        counts=count_unusable(rows),
        questions=_questions(run),
        bad_steps=_optional(run / "bad_step.json") or [],
        begun=_optional(run / "run.json") or {},
        commit=facts.get("commit", "unknown"),
        versions=facts.get("versions", {}),
        settings=json.dumps(facts.get("settings", {}), indent=1),
    )
    with new_file(run / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return run / "report.html"


def _optional(path: Path) -> Any:
    return read_json(path) if path.exists() else None


def _facts(run: Path) -> dict[str, Any]:
    """What the newest checkpoint says of the run."""
    found = sorted(run.glob("checkpoints/step-*/train.json"), key=lambda path: int(path.parent.name[5:]))
    return read_json(found[-1]) if found else {}


def _series(rows: Sequence[Mapping[str, float]], name: str) -> Line:
    points = [(row["step"], row[name]) for row in rows if name in row]
    return Line(name, [step for step, _ in points], [value for _, value in points])


def _panels(rows: Sequence[Mapping[str, float]]) -> list[dict[str, str]]:
    there = list(dict.fromkeys(name for row in rows for name in row))
    panels = []
    for title, wanted in PANELS:
        names = [name for name in there if any(name == one or _below(name, one) for one in wanted)]
        if names:
            panels.append({"title": title, "svg": plot_lines([_series(rows, name) for name in names])})
    return panels


def _below(name: str, prefix: str) -> bool:
    return prefix.endswith("/") and name.startswith(prefix)


def _cards(rows: Sequence[Mapping[str, float]], facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Figure and what it is."""
    held_out, last = _series(rows, "held_out_loss"), {k: v for row in rows for k, v in row.items()}
    cards = [(f"{max(row['step'] for row in rows):,}", "steps")]
    if held_out.values:
        best = min(held_out.values)
        at = held_out.steps[held_out.values.index(best)]
        cards.append((f"{best:.3f}", f"lowest held-out loss, at step {at}; first {held_out.values[0]:.3f}"))
    if "seconds" in facts:
        cards.append((f"{facts['seconds'] / 60:.1f} min", "of training"))
    for name, form, what in (
        ("tokens_s", "{:,.0f}", "tokens a second"),
        ("mfu", "{:.0%}", "of the device's peak"),
        ("padding", "{:.1%}", "padding"),
        ("wait", "{:.1%}", "of the time waiting for data"),
    ):
        if name in last:
            cards.append((form.format(last[name]), what))
    if "learned_parameters" in last:
        whole = last["learned_parameters"] + last["frozen_parameters"]
        cards.append((f"{last['learned_parameters']:,}", f"numbers that learned, of {whole:,}"))
    return cards


def _questions(run: Path) -> list[dict[str, Any]]:
    """Held-out questions with what was answered at each evaluation."""
    told = _optional(run / "answers.json")
    if not told:
        return []
    return [
        {**one, "answers": [(at["step"], at["said"][number]) for at in told["answers"]]}
        for number, one in enumerate(told["questions"])
    ]
