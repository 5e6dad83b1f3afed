"""Stored figures are printed as they are, and a slower fresh result is named."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tailorbird.errors import ConfigError, DataError
from tailorbird.perf.results import NAMES, cell, regressions, tables
from tailorbird.storage import read_json

ROOT = Path(__file__).parents[2]
STAMP = {"command": "make bench-policy", "commit": "c0ffee", "hardware": "a machine", "date": "2026-01-02"}
ROW = {
    "path": "openvino",
    "tier": "tolerance",
    "dtype": "bfloat16",
    "cameras": 3,
    "ms_p50": 2000.0,
    "ms_spread": [1900.0, 2100.0],
    "peer_ms_p50": 6000.0,
    "ratio": 3.0,
    "pcc": 0.9996543,
    "max_abs_error": 0.0123,
    "share_of_floor": 0.53,
    "peak_mib": 1234.5,
    "stages_ms": {"prepare": 10.0},
}
PEER = {**ROW, "path": "lerobot", "tier": "peer", "ratio": 1.0}
FEWER = {**ROW, "cameras": 1, "ratio": 4.0}

Typed = Callable[..., tuple[int | str | None, str]]


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"rows": rows, **STAMP}))
    return path


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    write(tmp_path / "policy_cpu.json", PEER, ROW, FEWER)
    return tmp_path


def test_rows_are_printed_with_their_figures_and_source(stored: Path) -> None:
    console = Console(width=200, record=True)
    for part in tables(stored, "policy", "lerobot"):
        console.print(part)
    printed = console.export_text()
    for words in ("openvino", "2000", "3.00x", "0.999654", "1.2e-02", "53%", "c0ffee"):
        assert words in printed
    assert "stages" not in printed, "no cell holds a table"


def test_a_result_is_not_sold_as_one_beside_another_library(stored: Path) -> None:
    with pytest.raises(ConfigError, match="beside lerobot, not transformers"):
        tables(stored, "policy", "transformers")


def test_missing_and_damaged_rows_are_refused(stored: Path) -> None:
    with pytest.raises(DataError, match=r"vlm_cpu\.json does not exist: run `make bench-vlm`"):
        tables(stored, "vlm")
    (stored / "policy_cpu.json").write_text(json.dumps({"rows": 3, **STAMP}))
    with pytest.raises(DataError, match=r"policy_cpu\.json is damaged"):
        tables(stored, "policy")


def test_noise_does_not_trip_the_check(stored: Path) -> None:
    slower = write(stored / "fresh.json", PEER, {**ROW, "ratio": 2.3}, {**FEWER, "ratio": 5.0})
    assert regressions(stored, "policy", slower) == []


def test_a_lost_quarter_and_a_lost_row_are_named(stored: Path) -> None:
    slow = write(stored / "fresh.json", PEER, {**ROW, "ratio": 2.2}, {**FEWER, "dtype": "float32"})
    first, second = regressions(stored, "policy", slow)
    assert first == "path openvino, dtype bfloat16, cameras 3: 2.20x, stored are 3.00x"
    assert second == "path openvino, dtype bfloat16, cameras 1: is missing"


def test_a_quick_run_is_compared_where_it_ran(stored: Path) -> None:
    assert regressions(stored, "policy", write(stored / "fresh.json", PEER, ROW)) == []
    slow = write(stored / "fresh.json", {**FEWER, "ratio": 2.9})
    assert len(regressions(stored, "policy", slow)) == 1


def test_what_cannot_be_compared_is_refused(stored: Path) -> None:
    with pytest.raises(DataError, match="no row in common"):
        regressions(stored, "policy", write(stored / "fresh.json", {**ROW, "cameras": 2}))
    (stored / "fresh.json").write_text("{}")
    with pytest.raises(DataError, match="no ratios to a peer"):
        regressions(stored, "policy", stored / "fresh.json")
    with pytest.raises(DataError, match=r"none\.json does not exist"):
        regressions(stored, "policy", stored / "none.json")
    with pytest.raises(ConfigError, match="memory has no ratios"):
        regressions(stored, "memory", stored / "fresh.json")


def test_the_command_ends_with_one_and_the_name_of_the_slower_row(typed: Typed, stored: Path) -> None:
    fresh = stored / "fresh.json"
    words = ("bench", "policy", "--results", stored, "--check", fresh)
    write(fresh, PEER, ROW, FEWER)
    assert typed(*words)[0] == 0
    write(fresh, PEER, {**ROW, "ratio": 1.0}, FEWER)
    message, _ = typed(*words)
    assert isinstance(message, str), "with which Python exits with 1"
    assert "openvino, dtype bfloat16, cameras 3" in message


def test_a_block_of_the_readme_has_a_line_for_each_row() -> None:
    sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
    from publish import policy_table

    lines = policy_table({"rows": [PEER, ROW, FEWER], **STAMP}).splitlines()
    assert lines[3] == (
        "| 3 | openvino | bfloat16 | tolerance | 2000 | 3.00x |  | 0.999654 | 1.2e-02 | 53% |  | 1234 |"
    )
    assert lines[-1].endswith("[results/policy_cpu.json](results/policy_cpu.json).")


def test_figures_are_as_precise_as_they_are_worth() -> None:
    shown = [cell("ms", 1234.56), cell("ms", 1.23456), cell("pcc", 1.0), cell("tiles", None), cell("a", True)]
    assert shown == ["1235", "1.23", "1.000000", "", "True"]


def test_scaling_names_where_each_stage_dominates() -> None:
    sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
    from scaling import turns

    costs = [(1, 30.0), (2, 60.0), (5, 150.0), (10, 300.0)]
    rows = [
        {"model": "m", "axis": "steps", "value": num, "stages_ms": {"vision": 100.0, "steps": ms}}
        for num, ms in costs
    ]
    assert turns(rows) == ["m, steps: vision at 1 to 2, steps at 5 to 10"]


def test_every_stored_row_is_known_by_names_of_its_own() -> None:
    for name in ("policy", "vlm", "pixels"):
        rows = read_json(ROOT / "results" / f"{name}{'' if name == 'pixels' else '_cpu'}.json")["rows"]
        assert len({tuple(row.get(key) for key in NAMES) for row in rows}) == len(rows)
