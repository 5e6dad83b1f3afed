"""What closed-loop runs came to: episodes as files, summaries, tables."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from tailorbird.errors import DataError
from tailorbird.evals.config import RolloutConfig
from tailorbird.evals.metrics import percentiles, wilson
from tailorbird.provenance import stamp, versions
from tailorbird.storage import new_file, read_json, write_json


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One closed-loop run. The film is an mp4; the action lists are per tick."""

    task: str
    seed: int
    solved: bool
    ticks: int
    held: int
    chunk_ms: list[float]
    film: bytes | None = None
    actions: list[list[float]] | None = None
    expert_actions: list[list[float]] | None = None


def save_episodes(run: Path, name: str, episodes: Sequence[Episode], command: str) -> None:
    """Write rollouts/<name>.json, and videos/<task>.mp4 for the episodes that were filmed.

    The file says where it comes from: command, commit, hardware, date.
    """
    rows = []
    for episode in episodes:
        row = asdict(episode)
        film = row.pop("film")
        if film is not None:
            with new_file(run / f"videos/{episode.task}.mp4") as temporary:
                temporary.write_bytes(film)
        rows.append(row)
    write_json(_file(run, name), {**stamp(command), "episodes": rows})


def load_episodes(run: Path, name: str) -> list[Episode]:
    """Read what `save_episodes` wrote; the films stay in their files."""
    return [Episode(**row) for row in read_json(_file(run, name))["episodes"]]


def load_stamp(run: Path, name: str) -> dict[str, str]:
    """Where the episodes of a condition come from."""
    return {key: value for key, value in read_json(_file(run, name)).items() if key != "episodes"}


def _file(run: Path, name: str) -> Path:
    return run / f"rollouts/{name}.json"


def summarise(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Success rates with intervals, by task and in all, and what chunks cost."""
    tasks = list(dict.fromkeys(episode.task for episode in episodes))
    by_task = {}
    for task in tasks:
        solved = [episode.solved for episode in episodes if episode.task == task]
        low, high = wilson(sum(solved), len(solved))
        by_task[task] = {
            "success": statistics.fmean(solved),
            "low": low,
            "high": high,
            "episodes": len(solved),
        }
    solved = [episode.solved for episode in episodes]
    low, high = wilson(sum(solved), len(solved))
    return {
        "success": statistics.fmean(solved),
        "low": low,
        "high": high,
        "episodes": len(solved),
        "by_task": by_task,
        "chunk_ms": percentiles([ms for episode in episodes for ms in episode.chunk_ms]),
    }


def success_table(conditions: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The figures that a result file leads with."""
    normal = conditions["normal"]
    return {
        "success_rate": normal["success"],
        "success_interval": [normal["low"], normal["high"]],
        "success_by_task": {task: row["success"] for task, row in normal["by_task"].items()},
        **{
            name: conditions[condition]["success"]
            for name, condition in (
                ("untrained_success_rate", "untrained"),
                ("shuffled_instruction_success_rate", "shuffled"),
                ("black_images_success_rate", "black"),
            )
            if condition in conditions
        },
        "episodes": normal["episodes"],
        "chunk_ms_p50": normal["chunk_ms"]["p50"],
        "chunk_ms_p99": normal["chunk_ms"]["p99"],
    }


def load_conditions(run: Path) -> dict[str, dict[str, Any]]:
    """Summaries of all the conditions that a run has files for, `normal` first.

    Raises:
        DataError: there are none.
    """
    names = [name for name in LABELS if _file(run, name).exists()]
    if not names:
        raise DataError(f"{run} has no rollouts yet: run `tailorbird rollout` or `tailorbird demo` into it")
    return {name: summarise(load_episodes(run, name)) for name in names}


def save_result(run: Path, name: str, episodes: Sequence[Episode], cfg: RolloutConfig, command: str) -> None:
    """Add the episodes of a condition to a folder, and result.json once the normal ones are there."""
    save_episodes(run, name, episodes, command)
    conditions = load_conditions(run)
    if "normal" in conditions:
        origin = {**load_stamp(run, "normal"), "versions": versions(), "settings": {"rollout": asdict(cfg)}}
        write_json(run / "result.json", {**success_table(conditions), **origin})


LABELS = {
    "normal": "the trained policy",
    "shuffled": "told another task's instruction",
    "black": "shown black pictures",
    "untrained": "before training",
}


def table(conditions: Mapping[str, Mapping[str, Any]]) -> Table:
    """Success by task and condition, for the terminal."""
    rows = Table("task", title="solved, %", title_justify="left")
    for name in conditions:
        rows.add_column(LABELS[name], justify="right", max_width=18)
    for task in next(iter(conditions.values()))["by_task"]:
        rates = [run["by_task"][task]["success"] for run in conditions.values()]
        rows.add_row(task.removesuffix("-v3"), *(f"{100 * rate:.0f}" for rate in rates), end_section=False)
    rows.add_section()
    total = [f"{100 * run['success']:.0f} % of {run['episodes']}" for run in conditions.values()]
    rows.add_row("all", *total, style="bold")
    return rows
