"""What the README shows is what happens."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import hub
from lerobot_folder import write_folder
from released import CFG, write_released
from shown import picture, video
from small_gguf import Gguf
from synthetic import write_dataset
from tailorbird.checkpoint.policy import write_policy
from tailorbird.model.init import initialise
from tailorbird.model.vla import VLA
from tailorbird.processing.image import ImageSpec
from tailorbird.processing.normalize import Normalizer
from tailorbird.processing.pipeline import Pipeline
from tailorbird.processing.text import InstructionTokenizer, train_tokenizer
from tailorbird.storage import read_json
from tiny import TINY_VLA
from tiny_server import serving

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
MODEL = "HuggingFaceTB/SmolVLM2-256M-Video-Instruct"
FEWER = {"50": "2", "2000": "5", "runs/doors/checkpoints/step-002000": "runs/doors/checkpoints/step-000005"}
QUICK = (
    "--epochs 0 --train.steps 2 --train.log-every 1 --train.threads 1 --train.device cpu --train.warmup 1 "
)
QUICK += "--rows.workers 0 --answer-tokens 4"
SMALLER = {
    "tune": "--train.threads 1 --train.steps 3 --train.batch 4",
    "record": "--sim.size 48 --workers 1",
    "train": "--train.threads 1 --model.chunk 6",
    "rollout": "--seeds 1 --max-s 0.4 --film-size 64 --sim.size 48 --workers 1",
}


def steps() -> list[list[str]]:
    (block,) = re.findall(r"```\n(tailorbird record.*?)```", README, re.DOTALL)
    return [shlex.split(line)[1:] for line in block.strip().splitlines()]


def test_the_steps_of_the_readme_run_one_after_the_other(tmp_path: Path) -> None:
    outputs = {}
    for words in steps():
        kind = "tune" if "--policy" in words else words[0]
        command = [FEWER.get(word, word) for word in words] + shlex.split(SMALLER.get(kind, ""))
        done = subprocess.run(
            [sys.executable, "-m", "tailorbird", *command], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        outputs[kind] = done.stdout
    assert "door-open-v3: 2 episodes" in outputs["record"]
    assert "policy: runs/doors/checkpoints/step-000005" in outputs["train"]
    assert "policy: runs/longer/checkpoints/step-000003" in outputs["tune"]
    assert "% of 2" in outputs["rollout"]
    assert (tmp_path / "runs/doors/eval/report.html").exists()
    assert "close the door" in outputs["info"]
    assert "H.264" in outputs["doctor"]


def test_the_tables_of_the_readme_are_made_from_the_published_results() -> None:
    sys.path.insert(0, str(ROOT / "bench"))
    from publish import TABLES, block

    for name in TABLES:
        assert block(name) in README


def test_five_lines_give_the_first_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lines of the README, with a tiny model in the hub's layout under its name."""
    (code,) = re.findall(r"```python\n(import tailorbird\n\nvlm = .*?)```", README, re.DOTALL)
    write_released(tmp_path / MODEL, replace(CFG, decoder=replace(CFG.decoder, max_positions=900)))
    Image.new("RGB", (12, 9), "red").save(tmp_path / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.endswith("\n")


def test_the_commands_of_the_readme_about_models_run(tmp_path: Path) -> None:
    """With tiny models under the released names, and a tiny tower for SigLIP."""
    (found,) = re.findall(r"```\n(tailorbird chat .*?)```", README, re.DOTALL)
    write_released(tmp_path / MODEL, replace(CFG, decoder=replace(CFG.decoder, max_positions=900)))
    (tmp_path / "photos").mkdir()
    for name in ("cat.jpg", "photos/dog.png"):
        Image.new("RGB", (12, 9), "red").save(tmp_path / name)
    Gguf().write(tmp_path / "SmolLM2-135M-Instruct.gguf")
    (tmp_path / "results").symlink_to(ROOT / "results")
    for line in found.strip().splitlines():
        words = [sys.executable, "-m", "tailorbird", *shlex.split(line)[1:]]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
    assert (tmp_path / "tiles.png").exists()
    assert len((tmp_path / "captions.jsonl").read_text().splitlines()) == 1
    assert (tmp_path / "models/mine/model.safetensors").exists()


def test_what_the_readme_says_about_teaching_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: Callable[..., tuple[int | str | None, str]]
) -> None:
    """With tiny models under the names, and a small set on a server that speaks like the hub."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in (MODEL, "models/mine"):
        write_released(tmp_path / name, replace(CFG, decoder=replace(CFG.decoder, max_positions=900)))
    (row,) = re.findall(r"`(\{.image.*\})`", README)
    for number, name in enumerate(("cat.jpg", *(f"{i}.jpg" for i in range(7)))):
        Image.new("RGB", (12 + number, 9), "red").save(name)
    Path("my.jsonl").write_text("\n".join([row, *(row.replace("cat.jpg", f"{i}.jpg") for i in range(7))]))
    for number in range(3):
        Path(f"{number}.mp4").write_bytes(video(3 + number))
    clips = [json.dumps({"video": f"{i}.mp4", "caption": "Light."}) for i in range(3)]
    Path("clips.jsonl").write_text("\n".join(clips))
    table = [
        {"images": [{"bytes": picture(i)}], "texts": [{"user": "Which?", "assistant": "A"}]} for i in range(6)
    ]
    Path("remote/ai2d").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(table), "remote/ai2d/train-00000-of-00001.parquet")
    smaller = {
        "finetune": f"{QUICK} --rows.lanes 2",
        "train": f"{QUICK} --rows.lanes 2 --train.precision float32 --held-out 0.2",
    }
    printed = {}
    blocks = re.findall(r"```\n(tailorbird data .*?)```", README, re.DOTALL)
    for line in "".join(blocks).splitlines():
        words = shlex.split(line)[1:]
        if words[:2] == ["data", "download"]:  # the client reads its settings when it is imported
            with hub.serving(tmp_path / "remote", "datasets", "HuggingFaceM4/the_cauldron", []) as address:
                env = hub.environment(tmp_path / "home", address)
                (printed["data download"],) = run_all(line, {}, tmp_path, env)
            continue
        if words[0] == "launch":  # tests/recipes/test_launch.py does that
            words.insert(1, "--dry-run")
        ended, said = typed(*words, *shlex.split(smaller.get(words[0], "")))
        assert ended == 0, (line, ended)
        printed[" ".join(words[:2])] = said
    assert "8 of 8 rows can be used" in printed["data check"]
    assert "Talk to it: tailorbird chat runs/mine/model" in printed[f"finetune {MODEL}"]
    assert "cauldron: whole, in data/cauldron" in printed["data download"]
    assert "-m tailorbird finetune runs/video/model --data my.jsonl" in printed["launch --dry-run"]
    for made in (
        "page.html",
        "runs/mine/report.html",
        "models/merged/config.json",
        "runs/video/model/config.json",
    ):
        assert Path(made).exists(), made


def test_what_the_readme_says_about_smolvla_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a tiny policy in lerobot's layout under its name, and a made-up dataset."""
    (code,) = re.findall(
        r"```python\n(import numpy as np\nimport tailorbird\n\npolicy = .*?)```", README, re.DOTALL
    )
    (found,) = re.findall(r"```\n(tailorbird info me/.*?)```", README, re.DOTALL)
    state, action = (Normalizer(mean=(0.5,) * num, std=(2.0,) * num) for num in (3, 2))
    cameras = ("camera1", "camera2", "camera3")
    (tmp_path / "me").mkdir()
    write_folder(tmp_path / "me/smolvla-pick", cameras=cameras, state=state, action=action)
    write_dataset(tmp_path / "data/cubes", range(3))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == "(7, 2)\n"
    smaller = {
        "train": "--train.steps 2 --train.batch 2 --train.threads 1",
        "verify": "--scenes 2 --min-change 0",
    }
    for line in found.strip().splitlines():
        words = shlex.split(line)[1:]
        words = [sys.executable, "-m", "tailorbird", *words, *shlex.split(smaller.get(words[0], ""))]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
    assert (tmp_path / "runs/verify.png").exists()
    assert (tmp_path / "runs/cubes/checkpoints/step-000002/policy_preprocessor.json").exists()


def write_demo(folder: Path) -> None:
    """An untrained policy of the demo's kind."""
    model = VLA(replace(TINY_VLA, state_dim=4, action_dim=4, num_steps=2))
    initialise(model, 0)
    values = Normalizer(mean=(0.0,) * 4, std=(1.0,) * 4)
    pipeline = Pipeline(
        cameras=("corner2",),
        image=ImageSpec(size=16),
        state=values,
        action=values,
        tokenizer=InstructionTokenizer(train_tokenizer(["push the puck to the target"], 290), 64),
        hz=20.0,
    )
    folder.mkdir(parents=True)
    write_policy(folder, model.state_dict(), model.cfg, pipeline)


def run_all(found: str, smaller: dict[str, str], cwd: Path, env: dict[str, str] | None = None) -> list[str]:
    """The commands of a block, each made smaller; what they printed."""
    printed = []
    for line in found.strip().splitlines():
        words = shlex.split(line)[1:]
        words = [sys.executable, "-m", "tailorbird", *words, *shlex.split(smaller.get(words[0], ""))]
        done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, env=env)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        printed.append(done.stdout)
    return printed


def test_what_the_readme_says_about_speed_runs(tmp_path: Path, recorded: Path) -> None:
    """With a short recording."""
    (found,) = re.findall(r"```\n(tailorbird quantise .*?)```", README, re.DOTALL)
    write_demo(tmp_path / "runs/demo/policy")
    (tmp_path / "runs/demo/dataset").symlink_to(recorded)
    run_all(found, {"rollout": "--seeds 1 --max-s 0.4 --film-size 64 --sim.size 48 --workers 1"}, tmp_path)
    for made in ("int8/int8.json", "int8-rollout/result.json", "trace.json", "policy.onnx"):
        assert (tmp_path / "runs" / made).exists()


def test_what_the_readme_says_about_control_runs(tmp_path: Path) -> None:
    (found,) = re.findall(r"```\n(tailorbird run .*?)```", README, re.DOTALL)
    write_demo(tmp_path / "runs/demo/policy")
    smaller = {
        "run": "--seconds 1 --sim.size 48 --slow-ms 30",
        "rollout": "--seeds 1 --max-s 0.4 --film-size 64 --sim.size 48 --workers 1",
    }
    printed = run_all(found, smaller, tmp_path)
    assert "age of the scene" in printed[0]
    assert (tmp_path / "runs/control.json").exists()


def test_five_lines_drive_a_robot_from_a_server(tmp_path: Path) -> None:
    (command,) = re.findall(r"```\n(tailorbird serve .*?)\n```", README)
    (code,) = re.findall(r"```python\n(from tailorbird.client .*?)```", README, re.DOTALL)
    write_demo(tmp_path / "policy")
    words = [
        str(tmp_path / "policy") if word == "runs/demo/policy" else word for word in shlex.split(command)
    ]
    with serving(Path(words[3])) as server:
        lines = code.replace("ws://127.0.0.1:8000", server.url).replace("range(12)", "range(2)")
        names: dict[str, object] = {}
        exec(compile(lines, "README.md", "exec"), names)
    assert names["solved"] is False


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*.json")), ids=lambda path: path.name)
def test_every_result_says_where_it_comes_from(path: Path) -> None:
    found = read_json(path)
    assert all(
        isinstance(found[name], str) and found[name] for name in ("command", "commit", "hardware", "date")
    )
    assert "dirty" not in found["commit"]
    assert path.name in README


def test_every_link_of_the_readme_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) > 8
    for link in links:
        assert (ROOT / link).exists(), link
