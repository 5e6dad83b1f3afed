from pathlib import Path

import pytest
from rich.console import Console

from tailorbird.errors import ConfigError, DataError
from tailorbird.evals.config import RolloutConfig
from tailorbird.evals.report import write_report
from tailorbird.evals.results import Episode, load_conditions, load_episodes, save_result, summarise, table
from tailorbird.storage import read_json

CFG = RolloutConfig(tasks=("push-v3", "door-close-v3"), seeds=2)


def episode(task: str, seed: int, *, solved: bool, film: bytes | None = None) -> Episode:
    return Episode(
        task=task, seed=seed, solved=solved, ticks=7, held=1, chunk_ms=[3.0 + seed, 5.0], film=film
    )


EPISODES = [
    episode("push-v3", 0, solved=True, film=b"not looked at here"),
    episode("push-v3", 1, solved=False),
    episode("door-close-v3", 0, solved=True),
    episode("door-close-v3", 1, solved=True),
]


def test_a_summary_counts_by_task_and_in_all() -> None:
    found = summarise(EPISODES)
    assert found["success"] == 0.75
    assert found["episodes"] == 4
    assert {task: row["success"] for task, row in found["by_task"].items()} == {
        "push-v3": 0.5,
        "door-close-v3": 1.0,
    }
    assert found["low"] < 0.75 < found["high"]
    assert found["chunk_ms"]["max"] == 5.0


def test_episodes_come_back_from_their_files_and_films_lie_beside_them(tmp_path: Path) -> None:
    save_result(tmp_path, "normal", EPISODES, CFG, "a command")
    back = load_episodes(tmp_path, "normal")
    assert [(e.task, e.seed, e.solved, e.chunk_ms) for e in back] == [
        (e.task, e.seed, e.solved, e.chunk_ms) for e in EPISODES
    ]
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["push-v3.mp4"]
    result = read_json(tmp_path / "result.json")
    assert result["success_rate"] == 0.75
    assert {"command", "commit", "hardware", "date"} <= result.keys()


def test_conditions_gather_in_one_folder_the_normal_one_first(tmp_path: Path) -> None:
    save_result(tmp_path, "black", EPISODES[:1] + EPISODES[2:3], CFG, "a command")
    assert not (tmp_path / "result.json").exists()
    save_result(tmp_path, "normal", EPISODES, CFG, "a command")
    conditions = load_conditions(tmp_path)
    assert list(conditions) == ["normal", "black"]
    screen = Console(width=100, record=True, quiet=False, file=(tmp_path / "screen").open("w"))
    screen.print(table(conditions))
    screen.file.close()
    text = (tmp_path / "screen").read_text()
    assert "75 % of 4" in text
    assert "door-close" in text


def test_a_result_keeps_the_origin_of_its_own_episodes(tmp_path: Path) -> None:
    save_result(tmp_path, "normal", EPISODES, CFG, "the first command")
    save_result(tmp_path, "black", EPISODES, CFG, "another command")
    assert read_json(tmp_path / "result.json")["command"] == "the first command"


def test_leftovers_of_a_killed_writer_are_no_condition(tmp_path: Path) -> None:
    save_result(tmp_path, "normal", EPISODES, CFG, "a command")
    (tmp_path / "rollouts/.black.99.json").write_text("{")
    assert list(load_conditions(tmp_path)) == ["normal"]


def test_a_folder_without_rollouts_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no rollouts yet: run `tailorbird rollout`"):
        load_conditions(tmp_path)


def test_a_report_of_nothing_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no result.json: run `tailorbird demo`"):
        write_report(tmp_path)


@pytest.mark.parametrize("wrong", [{"tasks": ()}, {"tasks": ("pushing",)}, {"seeds": 0}, {"max_s": 9.0}])
def test_impossible_rollouts_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        RolloutConfig(**wrong)  # type: ignore[arg-type]
