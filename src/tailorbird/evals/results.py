"""Closed-loop runs as files: one JSON a condition, one mp4 a task."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tailorbird.evals.rollout import Episode, summarise
from tailorbird.storage import new_file, read_json, write_json


def save_episodes(run: Path, condition: str, episodes: Sequence[Episode]) -> None:
    """Write rollouts/<condition>.json, and videos/<task>.mp4 for the episodes that were filmed."""
    rows = []
    for episode in episodes:
        row = asdict(episode)
        film = row.pop("film")
        if film is not None:
            with new_file(run / f"videos/{episode.task}.mp4") as temporary:
                temporary.write_bytes(film)
        rows.append(row)
    write_json(run / f"rollouts/{condition}.json", rows)


def load_episodes(run: Path, condition: str) -> list[Episode]:
    """Read what `save_episodes` wrote; the films stay in their files."""
    return [Episode(**row) for row in read_json(run / f"rollouts/{condition}.json")]


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
    """Summaries of all the conditions that a run has files for, `normal` first."""
    names = sorted(
        (path.stem for path in (run / "rollouts").glob("*.json")), key=lambda name: (name != "normal", name)
    )
    return {name: summarise(load_episodes(run, name)) for name in names}
