"""One HTML file with everything in it: figures, films, settings. It needs no network and no script."""

import base64
import json
from pathlib import Path

import jinja2

from tailorbird.errors import DataError
from tailorbird.evals import plots
from tailorbird.evals.results import LABELS, load_conditions, load_episodes
from tailorbird.sim.tasks import INSTRUCTIONS
from tailorbird.storage import new_file, read_json
from tailorbird.train.log import read_metrics

NAMES = ("left / right", "far / near", "up / down", "gripper")  # of Meta-World's four action dimensions


def write_report(run: Path) -> Path:
    """Make report.html from result.json, rollouts/, videos/ and train/metrics.jsonl of a run.

    Raises:
        DataError: the run has no result yet.
    """
    if not (run / "result.json").exists():
        raise DataError(
            f"{run} has no result.json: run `tailorbird demo` or `tailorbird rollout` into it first"
        )
    result, conditions = read_json(run / "result.json"), load_conditions(run)
    episodes = load_episodes(run, "normal")
    hz = result["settings"]["rollout"]["sim"]["control_hz"]
    tasks = []
    for task, row in conditions["normal"]["by_task"].items():
        shown = next((e for e in episodes if e.task == task and e.actions), None)
        film = run / f"videos/{task}.mp4"
        tasks.append(
            {
                "name": task.removesuffix("-v3"),
                "instruction": INSTRUCTIONS[task],
                "row": row,
                "solved": shown is not None and shown.solved,
                "seed": shown.seed if shown else None,
                "film": base64.b64encode(film.read_bytes()).decode() if film.exists() else None,
                "actions": plots.plot_actions(shown.actions, shown.expert_actions or [], NAMES, hz)
                if shown and shown.actions
                else None,
            }
        )
    metrics = read_metrics(run / "train")
    chunk_ms = [ms for episode in episodes for ms in episode.chunk_ms]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tailorbird.evals", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("report.html.j2").render(
        result=result,
        conditions=conditions,
        labels=LABELS,
        tasks=tasks,
        success=plots.plot_success(conditions),
        learning=plots.plot_learning(metrics) if metrics else None,
        latency=plots.plot_latency(chunk_ms, 1e3 / hz),
        settings=json.dumps(result["settings"], indent=1),
    )
    with new_file(run / "report.html") as temporary:
        temporary.write_text(page)
    return run / "report.html"
