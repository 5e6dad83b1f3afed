"""The table of components, and the stored tables."""

import json
from pathlib import Path

import pytest
from rich.console import Console

import tailorbird
from released import CFG, write_released
from small_gguf import Gguf
from tailorbird.errors import ConfigError, DataError
from tailorbird.infer.config import ImageOptions
from tailorbird.perf.results import tables
from tailorbird.perf.stages import measure, table

RESULTS = Path(__file__).parents[2] / "results"
STAGES = ["processor", "tokenizer", "preprocessing", "vision", "connector", "prefill", "decode"]


def printed(*parts: object) -> str:
    console = Console(width=120, record=True)
    for part in parts:
        console.print(part)
    return console.export_text()


def test_every_component_has_its_time_and_the_shares_add_up(tmp_path: Path) -> None:
    write_released(tmp_path / "vlm")
    model = tailorbird.load_vlm(tmp_path / "vlm", device="cpu", images=ImageOptions(split=False))
    found = measure(model, None, num_tokens=4, repeats=2)
    assert list(found.ms) == STAGES
    assert all(ms > 0 for ms in found.ms.values())
    assert (found.num_tiles, found.dtype) == (1, "float32")
    assert found.num_prompt_tokens > CFG.tokens_per_image
    rows = printed(table(found))
    assert "4 tokens, " in rows
    shares = [float(line.split("%")[0].split()[-1]) for line in rows.splitlines() if "%" in line]
    assert shares[-1] == 100
    assert sum(shares[:-1]) == pytest.approx(100, abs=0.5)


def test_a_model_without_eyes_has_no_stages(tmp_path: Path) -> None:
    model = tailorbird.load_vlm(Gguf().write(tmp_path / "words.gguf"), device="cpu")
    with pytest.raises(ConfigError, match="without eyes"):
        measure(model, None)


def test_stored_figures_are_printed_with_their_source() -> None:
    stored = json.loads((RESULTS / "loss_gap.json").read_text())
    rows = printed(*tables(RESULTS, "loss-gap"))
    assert f"{stored['reference_loss']:.6f}" in rows
    assert f"{stored['preprocess_speedup_split']:.1f}x" in rows
    assert stored["commit"] in rows
    assert "make bench-loss-gap" in rows


def test_missing_and_damaged_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"loss_gap\.json does not exist: run `make bench-loss-gap`"):
        tables(tmp_path, "loss-gap")
    (tmp_path / "loss_gap.json").write_text("{}")
    with pytest.raises(DataError, match=r"loss_gap\.json is damaged .*measure again"):
        tables(tmp_path, "loss-gap")
