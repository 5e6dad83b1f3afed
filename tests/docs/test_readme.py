"""What the README shows is what happens."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tailorbird.storage import read_json

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
FEWER = {"50": "2", "2000": "5", "runs/doors/checkpoints/step-002000": "runs/doors/checkpoints/step-000005"}
SMALLER = {
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
        command = [FEWER.get(word, word) for word in words] + shlex.split(SMALLER.get(words[0], ""))
        done = subprocess.run(
            [sys.executable, "-m", "tailorbird", *command], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        outputs[words[0]] = done.stdout
    assert "door-open-v3: 2 episodes" in outputs["record"]
    assert "policy: runs/doors/checkpoints/step-000005" in outputs["train"]
    assert "% of 2" in outputs["rollout"]
    assert (tmp_path / "runs/doors/eval/report.html").exists()
    assert "close the door" in outputs["info"]
    assert "H.264" in outputs["doctor"]


def test_the_table_of_the_readme_is_made_from_the_published_results() -> None:
    sys.path.insert(0, str(ROOT / "bench"))
    from publish import BLOCK, figures

    found = BLOCK.search(README)
    assert found
    assert found[0] == found[1] + figures(read_json(ROOT / "results/demo.json")) + found[2]


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
