"""`--dry-run` of every recipe: what would learn and what it would need, and nothing is written."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
from small import fit, write_dataset

from released import CFG, write_released

Typed = Callable[..., tuple[int | str | None, str]]
STEPS = ["--train.steps", "50", "--dry-run"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model without its weights, rows with pictures, and demonstrations."""
    root = tmp_path_factory.mktemp("foresee")
    write_released(root / "tiny", replace(CFG, decoder=replace(CFG.decoder, max_positions=200, num_layers=2)))
    for file in (root / "tiny").glob("*.safetensors*"):
        file.unlink()
    for i in range(12):
        Image.fromarray(np.full((20, 30 + i, 3), 90, np.uint8)).save(root / f"{i}.png")
    rows = [{"image": f"{i}.png", "question": "what is it?", "answer": "a bird"} for i in range(12)]
    (root / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_dataset(root / "discs")
    return root


def typed_in(
    typed: Typed, folder: Path, monkeypatch: pytest.MonkeyPatch, *words: object
) -> tuple[object, str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    ended, said = typed(*words, "--out", folder / "none")
    assert not (folder / "none").exists()
    return ended, " ".join(said.split())


@pytest.mark.parametrize("recipe", [("train", "vision", "--model"), ("finetune",)])
def test_a_model_that_is_taught_needs_neither_its_weights_nor_a_gpu_for_it(
    folder: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch, recipe: tuple[str, ...]
) -> None:
    words = [*recipe, folder / "tiny", "--data", folder / "my.jsonl", "--epochs", "0", *STEPS]
    ended, said = typed_in(typed, folder, monkeypatch, *words, "--rows.lanes", "4", "--gpus", "2")
    assert ended == 0, said
    assert "parameters" in said
    assert "memory of each of 2 GPUs, by ddp, MiB" in said
    assert "50 steps of 4 rows, about 744 tokens" in said
    assert "hours on 2 x H100, if 40% of its peak in" in said
    assert ("computed again" in said) == (recipe[0] == "train")
    ended, _ = typed_in(typed, folder, monkeypatch, *words, "--rows.lanes", "4", "--gpus", "3")
    assert "3 GPUs cannot share 4 rows" in str(ended)


def test_policies_from_nothing_and_those_that_go_on_are_foreseen(
    folder: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = ["train", "--data", folder / "discs", *STEPS, "--gpu", "l4"]
    ended, said = typed_in(typed, folder, monkeypatch, *new)
    assert ended == 0, said
    assert "50 steps of 32 observations with 2 noises each" in said
    assert "hours on 1 x L4" in said
    policy = fit(folder / "discs", folder / "run", steps=1).checkpoint
    tuned = ["train", "--policy", policy, "--data", folder / "discs", *STEPS, "--learn.part", "expert"]
    ended, said = typed_in(typed, folder, monkeypatch, *tuned, "--train.batch", "6")
    assert ended == 0, said
    assert "50 steps of 6 observations" in said


def test_an_unknown_gpu_and_what_shards_cannot_learn_are_refused_before_anything_is_read(
    typed: Typed, tmp_path: Path
) -> None:
    nothing = ["--data", tmp_path / "none", "--out", tmp_path / "out"]
    ended, _ = typed("finetune", tmp_path / "none", *nothing, "--dry-run", "--gpu", "Z9")
    assert "no device 'Z9': there are H200, H100" in str(ended)
    shards = ["--train.parallel", "fsdp"]
    for words, told in (
        (["finetune", tmp_path / "none"], "low-rank updates"),
        (["train", "vision", "--model", "none", "--train.compile"], "compiled blocks"),
        (["train", "vision", "--model", "none", "--train.optimizer", "adamw8bit"], "adamw8bit"),
        (["train", "tiny", "--train.precision", "bfloat16"], "a policy in bfloat16"),
        (["train", "smolvla", "--learn.lora.rank", "4"], "low-rank updates"),
    ):
        ended, said = typed(*words, *nothing, *shards)
        assert ended not in (0, None), said
        assert told in str(ended) + said, (ended, said)
    assert not (tmp_path / "out").exists()
