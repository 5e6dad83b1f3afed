"""Policies of lerobot: described, and asked whether the simulator shows what they look at."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

from hub import environment, serving
from lerobot_folder import write_folder
from tailorbird.errors import ConfigError, MissingStats
from tailorbird.evals.config import RolloutConfig
from tailorbird.evals.describe import describe
from tailorbird.evals.rollout import open_policy
from tailorbird.sim.config import SimConfig


def printed(folder: Path) -> str:
    console = Console(width=400)
    with console.capture() as captured:
        for part in describe(str(folder)):
            console.print(part)
    return captured.get()


def test_a_policy_is_described_by_what_a_robot_must_give_and_gets(tmp_path: Path) -> None:
    text = printed(write_folder(tmp_path / "it"))
    for line in (
        "vlm           somebody/vlm",
        "cameras       top, image",
        "pictures      37 px, whole, with black on the left and on top",
        "state         5 values, filled up to 9, MEAN_STD",
        "action        4 values, filled up to 11, MIN_MAX",
        "chunk         7 actions at a rate that is not recorded, 10 flow steps",
        "instructions  at most 24 of",
    ):
        assert line in text


def test_a_policy_without_statistics_is_described_all_the_same(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "it")
    for path in folder.glob("policy_*.safetensors"):
        save_file({f"so100.buffer.{key}": value for key, value in load_file(path).items()}, path)
    text = printed(folder)
    assert "one of the sets in it: so100" in text
    assert "vlm.vision" in text


def test_the_cameras_of_the_simulator_must_be_those_of_the_policy(tmp_path: Path) -> None:
    folder, sim = write_folder(tmp_path / "it"), SimConfig()
    with pytest.raises(
        ConfigError, match=f"shows '{sim.camera}': say .* --rename {sim.camera} POLICYS, .*--without"
    ):
        open_policy(folder, RolloutConfig())
    cfg = RolloutConfig(rename={sim.camera: "top"}, without=("image",))
    assert open_policy(folder, cfg).pipeline.robot_cameras == (sim.camera,)


def test_the_simulator_can_say_which_statistics_a_policy_is_to_use(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "it")
    for path in folder.glob("policy_*.safetensors"):
        save_file({f"so100.buffer.{key}": value for key, value in load_file(path).items()}, path)
    cfg = RolloutConfig(rename={SimConfig().camera: "top"}, without=("image",))
    with pytest.raises(MissingStats, match="so100"):
        open_policy(folder, cfg)
    assert open_policy(folder, replace(cfg, stats="so100")).pipeline.state.width == 5


def test_a_policy_of_the_hub_is_described(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "it")

    def info(what: object, endpoint: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-m", "tailorbird", "info", str(what)],
            env=environment(tmp_path / "home", endpoint),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    with serving(folder, "models", "me/it", []) as endpoint:
        assert info("me/it", endpoint) == info(folder, endpoint)
