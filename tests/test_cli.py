"""What the command line says when something is wrong."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = ["demo", "record", "train", "rollout", "report", "chat", "describe", "inspect", "profile", "init"]
COMMANDS += ["data", "bench", "info", "doctor", "verify", "run", "launch"]


def tailorbird(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tailorbird", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches_its_options(command: str) -> None:
    done = tailorbird(command, "--help")
    assert done.returncode == 0
    assert f"usage: tailorbird {command}" in done.stdout
    assert re.search(rf"^\W+{command}\s+[A-Z]", tailorbird("--help").stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["info", "nothing-like-this"], "is no size (smolvlm2-256m"),
        (["report", "no/such/run"], "has no result.json"),
        (["train", "--data", "no/such/set", "--out", "x"], "is no folder here"),
        (["rollout", "no/policy", "--out", "x"], "no/policy"),
        (["record", "--out", "x", "--demos", "fly-v3", "3"], "name Meta-World tasks"),
        (["demo", "--fit.train.ema", "1.5"], "lr and clip must be"),
    ],
)
def test_a_refusal_is_one_line_and_says_what_to_do(words: list[str], message: str, tmp_path: Path) -> None:
    done = tailorbird(*words, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_option_is_explained() -> None:
    done = tailorbird("record", "--out", "x", "--demo", "push-v3", "3")
    assert done.returncode == 2
    assert "--demos" in done.stderr


def test_a_folder_that_holds_a_run_is_not_overwritten_without_resuming(tmp_path: Path) -> None:
    (tmp_path / "checkpoints/step-000010").mkdir(parents=True)
    done = tailorbird("train", "--data", "x", "--out", str(tmp_path), "--no-resume")
    assert done.returncode == 1
    assert "choose another --out, or --resume" in done.stderr
