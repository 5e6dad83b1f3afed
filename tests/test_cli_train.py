"""`tailorbird train`: which recipe a command line means, and that each goes the whole way."""

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tyro

from tailorbird.__main__ import Command
from tailorbird.cli.train import Tiny, Train, Tune, with_recipe
from tailorbird.errors import Interrupted
from tailorbird.train.loop import Trained

sys.path.insert(0, str(Path(__file__).parent / "train"))
from small import write_dataset

MINUTE = ["--train.steps", "2", "--train.batch", "3", "--train.threads", "1", "--train.held-out", "0.25"]


def parse(line: str) -> Tiny | Tune:
    command: Command = tyro.cli(Command, args=with_recipe(line.split()))
    assert isinstance(command, Train)
    return command.recipe


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("train --data d --out o", "train tiny --data d --out o"),
        ("train --data d --policy p --out o", "train tune --data d --policy p --out o"),
        ("train --policy=p --data d --out o", "train tune --policy=p --data d --out o"),
        ("train smolvla --data d --out o", "train smolvla --data d --out o"),
        ("train tiny --data d --out o", "train tiny --data d --out o"),
        ("train --help", "train --help"),
        ("record --out o", "record --out o"),
        ("train", "train"),
    ],
)
def test_a_recipe_that_is_left_out_is_tune_for_a_policy_and_else_tiny(line: str, meant: str) -> None:
    assert with_recipe(line.split()) == meant.split()


def test_each_recipe_has_its_own_defaults_and_any_policy_can_be_named() -> None:
    tiny, tune = parse("train --data d --out o"), parse("train --policy p --data d --out o")
    base = parse("train smolvla --data d --out o --train.steps 900 --learn.lora.rank 4")
    assert isinstance(tiny, Tiny)
    assert isinstance(tune, Tune)
    assert isinstance(base, Tune)
    assert (tune.policy, base.policy) == ("p", "lerobot/smolvla_base")
    assert (tune.settings.learn.part, base.settings.learn.part) == ("everything", "expert")
    assert (base.settings.train.steps, base.settings.train.batch) == (900, 64)
    assert base.settings.learn.lora.rank == 4
    other = parse(
        "train smolvla --policy mine --data d --out o --rename top camera1 --without camera2 camera3"
    )
    assert isinstance(other, Tune)
    assert (other.policy, other.settings.rename) == ("mine", {"top": "camera1"})
    assert other.settings.without == ("camera2", "camera3")


def test_a_run_that_was_asked_to_leave_ends_well_and_one_that_was_interrupted_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = Trained(
        checkpoint=tmp_path,
        best=None,
        step=7,
        loss=0.0,
        seconds=1.0,
        finished=False,
        stopped_by=signal.SIGTERM,
    )
    tiny = parse(f"train --data d --out {tmp_path}")
    tiny.carry_out(lambda: stopped, str)
    assert "stopped at step 7, saved" in capsys.readouterr().out
    with pytest.raises(Interrupted, match="stopped at step 7, saved"):
        tiny.carry_out(lambda: replace(stopped, stopped_by=signal.SIGINT), str)


def test_a_policy_from_nothing_is_trained_and_then_goes_on_learning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path / "data")
    model = [
        "--model.vlm.vision.image-size",
        "32",
        "--model.vlm.vision.stem",
        "4",
        "4",
        "4",
        "--model.chunk",
        "3",
    ]
    model += ["--train.max-delay", "2"]
    first = ["train", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "new"), *MINUTE, *model]
    parse(" ".join(first))()
    policy = tmp_path / "new/checkpoints/step-000002"
    second = ["train", "--policy", str(policy), "--data", str(tmp_path / "data"), "--out"]
    parse(" ".join([*second, str(tmp_path / "tuned"), *MINUTE, "--learn.lora.rank", "2"]))()
    tuned = json.loads((tmp_path / "tuned/checkpoints/step-000002/config.json").read_text())
    assert tuned["model"]["max_delay"] == 2
    assert "policy: " in capsys.readouterr().out.replace("\n", " ")
