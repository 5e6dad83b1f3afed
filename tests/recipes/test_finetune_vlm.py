"""`tailorbird finetune`, `merge`, `report` and the stages, from words to a folder that answers."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from PIL import Image

from released import CFG, write_released
from tailorbird.__main__ import Command
from tailorbird.checkpoint.vlm import read_vlm
from tailorbird.cli.finetune import Finetune
from tailorbird.cli.merge import Merge
from tailorbird.cli.report import Report
from tailorbird.cli.train import Train
from tailorbird.cli.train_vlm import Stage
from tailorbird.errors import ConfigError, DataError
from tailorbird.recipes.vlm_config import tune, video, vision, vision_dora
from tailorbird.recipes.vlm_data import described, divided, open_parts
from tailorbird.train.log import read_metrics

COLOURS = {"red": (220, 30, 30), "blue": (30, 60, 220), "green": (30, 170, 60)}
NUM, GONE = 20, (0, 7, 13)  # rows, and those without a picture
FAST = ["--train.threads", "1", "--train.device", "cpu", "--rows.workers", "0", "--answer-tokens", "6"]
BRIEF = ["--epochs", "1.5", "--train.lr", "2e-3"]
BAD = ["--rows.bad-share", "0.5"]


def run(*words: object) -> Command:
    return tyro.cli(Command, args=[str(word) for word in words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny model that was never taught, rows about colours, and what `finetune` made of both."""
    root = tmp_path_factory.mktemp("finetune")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        cfg = replace(CFG, decoder=replace(CFG.decoder, max_positions=200, num_layers=2))
        write_released(root / "tiny", cfg)
        rows = []
        for i in range(NUM):
            name, colour = list(COLOURS.items())[i % len(COLOURS)]
            Image.fromarray(np.full((20, 30 + i, 3), colour, np.uint8)).save(root / f"{i}.png")
            image = "gone.png" if i in GONE else f"{i}.png"
            rows.append({"image": image, "question": "what do you see?", "answer": f"a {name} bird"})
        (root / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        tuned(root, root / "run", *BRIEF)()
        yield root


def tuned(root: Path, out: Path, *more: str) -> Command:
    return run("finetune", root / "tiny", "--data", root / "my.jsonl", "--out", out, *FAST, *BAD, *more)


def test_what_was_learned_is_a_model_that_is_read_and_better_on_the_held_out_rows(folder: Path) -> None:
    rows = read_metrics(folder / "run")
    losses = [row["held_out_loss"] for row in rows if "held_out_loss" in row]
    assert losses[-1] < losses[0]
    base, learned = read_vlm(folder / "tiny"), read_vlm(folder / "run/model")
    changed = {
        name
        for name, value in learned.model.state_dict().items()
        if not torch.equal(value, base.model.state_dict()[name].float())
    }
    assert changed
    assert all(name.startswith("decoder.blocks.") for name in changed)
    assert not list((folder / "run/model").glob("train.*"))  # other programs read every tensor file


def test_the_updates_alone_merged_into_the_model_are_what_the_run_delivered(folder: Path) -> None:
    command = run("merge", folder / "tiny", folder / "run/model/adapter", "--out", folder / "merged")
    assert isinstance(command, Merge)
    command()
    theirs = read_vlm(folder / "merged").model.state_dict()
    for name, value in read_vlm(folder / "run/model").model.state_dict().items():
        torch.testing.assert_close(theirs[name].float(), value, rtol=1e-5, atol=1e-6)
    config = json.loads((folder / "run/model/adapter/adapter_config.json").read_text())
    assert (config["r"], config["base_model_name_or_path"]) == (16, str(folder / "tiny"))
    with pytest.raises(ConfigError, match="would replace what it is made from"):
        run("merge", folder / "tiny", folder / "run/model/adapter", "--out", folder / "tiny")()


def test_questions_are_answered_before_and_after_and_none_of_them_is_learned_from(folder: Path) -> None:
    told = json.loads((folder / "run/answers.json").read_text())
    steps = [one["step"] for one in told["answers"]]
    last = read_metrics(folder / "run")[-1]["step"]
    assert (steps[0], steps[-1]) == (0, last)
    assert steps == sorted(set(steps))
    for one in told["questions"]:
        assert re.fullmatch(r"a (red|blue|green) bird", one["expected"])
        assert [item for item in one["shown"] if "picture" in item]
    assert {len(one["said"]) for one in told["answers"]} == {len(told["questions"])}


def test_what_was_dropped_is_counted_by_reason_in_the_log_and_in_the_report(folder: Path) -> None:
    rows = [row for row in read_metrics(folder / "run") if "loss" in row]
    assert rows[-1]["dropped/my/missing file"] > 0
    assert 0 < rows[-1]["mfu"] < 1
    command = run("report", folder / "run")
    assert isinstance(command, Report)
    command()
    page = (folder / "run/report.html").read_text()
    assert "<td>missing file</td>" in page
    assert page.count("<svg") >= 5
    assert "prefers-color-scheme: dark" in page
    assert "#010101" not in page  # each colour is the page's own
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert "<script" not in page


def test_the_same_command_again_has_nothing_left_to_do_and_another_model_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in (folder / "run/model").glob("*.*")}
    tuned(folder, folder / "run", *BRIEF)()
    assert "continuing" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in (folder / "run/model").glob("*.*")}
    shutil.copytree(folder / "run/model", folder / "other")
    told = ["--data", folder / "my.jsonl", "--out", folder / "run", *BAD]
    with pytest.raises(ConfigError, match=r"begun with other settings .*: model "):
        run("finetune", folder / "other", *told)()


def test_a_plan_is_said_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tuned(folder, folder / "short", "--epochs", "0", "--train.steps", "2", "--train.log-every", "1")()
    said = capsys.readouterr().out
    assert re.search(r"my: 18 rows, 100\.0% of the samples\nheld out: 2 rows", said)
    assert re.search(r"2 steps of 4 rows: about \d+ samples, [\d.]+ passes, [\d,]+ tokens", said)
    assert re.search(r"numbers learn, in low-rank updates; about .* \(.* s a step, measured\)", said)
    assert said.index("s a step, measured") < said.index("step 0, my.jsonl")
    assert "tailorbird chat" in said
    assert re.search(r"dropped \d+ of my: missing file", said)


def test_steps_are_those_of_so_many_passes_and_all_that_is_counted_in_steps_keeps_its_share() -> None:
    cfg = tune().lasting(50)
    assert (cfg.train.steps, cfg.train.warmup, cfg.train.eval_every, cfg.train.save_every) == (50, 2, 10, 10)
    assert tune().lasting(3).train.eval_every == 1
    assert (video().train.warmup / video().train.steps) == pytest.approx(0.03, abs=1e-3)


def test_the_stages_have_the_published_rates() -> None:
    rates = {
        part: video().learn.pace(part).rate * video().train.lr
        for part in ("vision", "connector", "text", "embeddings")
    }
    assert rates == pytest.approx({"vision": 5e-6, "connector": 1e-4, "text": 2e-5, "embeddings": 2e-5})
    assert (vision().train.neftune, vision().show.long_side) == (5.0, (0.0, 0.4, 0.3, 0.2, 0.1))
    assert (vision_dora().learn.lora.dora, vision_dora().learn.lora.rank) == (True, 64)


@pytest.mark.parametrize("stage", ["vision-dora", "vision", "video"])
def test_a_stage_learns_from_several_sources_and_its_flags_change_it(folder: Path, stage: str) -> None:
    (folder / "b.jsonl").write_text((folder / "my.jsonl").read_text())
    out = folder / stage
    told = ["--data", f"{folder}/my.jsonl=3", f"{folder}/b.jsonl=1", "--model", folder / "tiny", "--out", out]
    small = ["--train.steps", "2", "--epochs", "0", "--rows.lanes", "2", "--train.log-every", "1"]
    exact = ["--train.precision", "float32", "--train.warmup", "1", "--held-out", "0.1"]
    rank = ["--learn.lora.rank", "3"] if stage == "vision-dora" else []
    command = run("train", stage, *told, *FAST, *BAD, *small, *exact, *rank)
    assert isinstance(command, Train)
    assert isinstance(command.recipe, Stage)
    command()
    assert read_metrics(out)[-1]["step"] == 2
    read_vlm(out / "model")


def test_weights_are_given_to_all_sources_or_to_none(folder: Path) -> None:
    mine, other = f"{folder}/my.jsonl", f"{folder}/0.png"
    assert [part.weight for part in open_parts([f"{mine}=0.25"], None, tune())] == [0.25]
    assert [part.weight for part in open_parts([mine], None, tune())] == [NUM]
    with pytest.raises(ConfigError, match="1 of 2 sources have a weight"):
        open_parts([f"{mine}=1", mine], None, tune())
    with pytest.raises(DataError, match="no file of rows"):
        open_parts([other], None, tune())
    with pytest.raises(ConfigError, match="nothing to learn from"):
        open_parts([], None, tune())


def test_files_of_one_name_are_told_apart_by_their_folders(folder: Path) -> None:
    for name in ("x", "y"):
        (folder / name).mkdir()
        (folder / name / "my.jsonl").write_text((folder / "my.jsonl").read_text())
    words = [f"{folder}/{name}/my.jsonl" for name in ("x", "y")]
    mixture, _ = divided(open_parts(words, folder, tune()), tune())
    assert mixture.names == (f"{folder}/x/my", f"{folder}/y/my")
    with pytest.raises(ConfigError, match="names that differ"):
        divided(open_parts([words[0]] * 2, None, tune()), tune())


def test_sources_may_be_gone_through_in_part_or_more_often_than_others(folder: Path) -> None:
    (folder / "b.jsonl").write_text((folder / "my.jsonl").read_text())
    words = ["--epochs", "2", "--when-dry", "drop", "--passes", "b", "0.5", "--most", "my", "10"]
    command = run("finetune", "m", "--data", folder / "my.jsonl", folder / "b.jsonl", "--out", "o", *words)
    assert isinstance(command, Finetune)
    cfg = command.settings
    parts = open_parts(command.data, None, cfg)
    assert [part.weight for part in parts] == [10, NUM / 4]
    mixture, _ = divided(parts, cfg)
    assert mixture.length == 2 * 10 + 18 // 2
    assert described(mixture)[1].startswith("b: 18 rows, 33.3% of the samples")
    even, _ = divided([replace(part, weight=1.0) for part in parts], cfg)
    assert re.fullmatch(r"b: 18 rows, 50\.0% of the samples, none after sample (18|19)", described(even)[1])
    assert divided(open_parts([str(folder / "b.jsonl")], None, tune()), tune())[0].length is None
    with pytest.raises(ConfigError, match="speaks of my, other: the sources are b"):
        divided(parts[1:], replace(cfg, passes={"other": 1.0}))


def test_how_long_it_lasts_is_said_once(folder: Path) -> None:
    command = tuned(folder, folder / "twice", "--train.steps", "7")
    with pytest.raises(ConfigError, match=r"--train\.steps 7 and --epochs 3 both say"):
        command()
    assert not (folder / "twice").exists()


def test_what_else_learns_is_another_run(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"learn\.lora\.alpha 32\.0, now 8\.0"):
        tuned(folder, folder / "run", *BRIEF, "--learn.lora.alpha", "8")()


def test_neither_the_model_that_is_taught_nor_what_lies_in_a_folder_is_replaced(folder: Path) -> None:
    shutil.copytree(folder / "tiny", folder / "mine/model")
    told = ["--data", folder / "my.jsonl", "--out", folder / "mine"]
    with pytest.raises(ConfigError, match="would replace the model that is taught"):
        run("finetune", folder / "mine/model", *told)()
    (folder / "kept").mkdir()
    (folder / "kept/thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        run("merge", folder / "tiny", folder / "run/model/adapter", "--out", folder / "kept")()
    assert (folder / "kept/thesis.txt").read_text() == "mine"


def test_finetune_needs_nothing_but_a_model_data_and_a_folder() -> None:
    command = run("finetune", "m", "--data", "my.jsonl", "--out", "o")
    assert isinstance(command, Finetune)
    assert command.settings == tune()
