"""`tailorbird run`: a real policy in its own process, the real simulator in real time, and what one sees."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rerun.chunk import RrdReader

from tailorbird.checkpoint.policy import write_policy
from tailorbird.live.recording import Recording
from tailorbird.processing.image import ImageSpec
from tailorbird.processing.normalize import Normalizer
from tailorbird.processing.pipeline import Pipeline
from tailorbird.processing.text import InstructionTokenizer, train_tokenizer
from tailorbird.recipes.run import Watching
from tailorbird.sim.tasks import INSTRUCTIONS
from tiny import TINY_VLA, new_model
from tiny_server import serving

Typed = Callable[..., tuple[int | str | None, str]]

CFG = replace(TINY_VLA, action_dim=6)
KEY = "open-sesame-0123456789"
QUICK = ("--sim.size", 32, "--seconds", 0.5)  # ten ticks


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    pipeline = Pipeline(
        cameras=("corner2",),
        image=ImageSpec(size=16),
        state=Normalizer(mean=(0.0, 0.6, 0.2, 0.5), std=(0.1,) * 4),
        action=Normalizer(mean=(0.0,) * 4, std=(0.2,) * 4),
        tokenizer=InstructionTokenizer(train_tokenizer([*INSTRUCTIONS.values()], 300), 24),
        hz=20.0,
        state_dim=5,
        action_dim=6,
    )
    write_policy(folder, new_model(CFG).state_dict(), CFG, pipeline)
    return folder


def test_a_run_is_shown_traced_and_recorded(policy: Path, typed: Typed, tmp_path: Path) -> None:
    words = ["run", "push-v3", "--policy", policy, *QUICK, "--episodes", 2, "--mode", "rtc"]
    code, said = typed(*words, "--trace", tmp_path / "t.json", "--rerun", tmp_path / "r.rrd")
    assert code == 0, said
    assert re.search(r"ticks\W+20, ", said)
    assert "2 to their end, 0 solved" in said
    assert re.search(r"- denoise\W+p50 [\d.]+ ms", said)
    events = json.loads((tmp_path / "t.json").read_text())
    ticks = [event["name"] for event in events if event["name"].startswith("tick ") and event["tid"] == 1]
    assert ticks == [f"tick {number}" for number in range(10)] * 2
    assert {"observe", "act", "chunk", "denoise"} <= {event["name"] for event in events}
    entities = {chunk.entity_path for chunk in RrdReader(tmp_path / "r.rrd").stream()}
    assert {"/camera/corner2", "/state", "/action", "/chunk", "/age_ms/scene"} <= entities


@pytest.mark.parametrize("mode", ["sync", "reuse"])
def test_a_robot_that_waits_for_a_slow_policy_holds(mode: str, policy: Path, typed: Typed) -> None:
    code, said = typed("run", "push-v3", "--policy", policy, *QUICK, "--mode", mode, "--slow-ms", 60)
    assert code == 0, said
    ticks = re.search(r"ticks\W+10, .* (\d+) held", said)
    assert ticks is not None
    assert int(ticks[1]) > 0 or mode != "sync"
    assert ("slowed" in said) == (mode != "reuse")  # there it is the pictures that come late


def test_what_is_older_than_allowed_is_not_executed(policy: Path, typed: Typed) -> None:
    code, said = typed("run", "push-v3", "--policy", policy, *QUICK, "--max-age-s", 1e-4)
    assert code == 0, said
    assert re.search(r"guard\W.*stale [1-9]", said)


def test_a_recording_is_closed_when_the_trace_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []
    close = Recording.close
    monkeypatch.setattr(Recording, "close", lambda one: (close(one), closed.append(one)))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        Watching(rerun=str(tmp_path / "r.rrd"), trace=tmp_path / "file/t.json").open("")
    assert len(closed) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"file", "r.rrd"}  # nothing has a temporary name


def test_ctrl_c_stops_the_robot_and_again_leaves(policy: Path, tmp_path: Path) -> None:
    words = ["run", "push-v3", "--policy", policy, "--sim.size", 32, "--trace", "t.json"]
    command = [sys.executable, "-u", "-m", "tailorbird", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert any(" Hz, " in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        assert any("stopped, the robot holds" in line for line in process.stdout)
        assert any("guard: stopped" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "0 to their end" in rest
    assert rest.endswith("stopped: Ctrl-C\n")
    events = json.loads((tmp_path / "t.json").read_text())
    stopped = [event["ts"] for event in events if event["name"] == "stopped"]
    assert len(stopped) >= 10
    held = [event["args"]["action"] for event in events if event["ph"] == "X" and event["ts"] in stopped]
    assert all(action[:3] == [0, 0, 0] for action in held)


def test_a_server_with_a_key_drives_the_robot(
    policy: Path, typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(policy, keys=[KEY]) as server:
        words = ["run", "push-v3", "--policy", server.url, *QUICK, "--timeout-s", 10]
        monkeypatch.setenv("TAILORBIRD_API_KEY", KEY)
        code, said = typed(*words, "--trace", tmp_path / "t.json")
        assert code == 0, said
        assert re.search(r"- wire\W+p50 [\d.]+ ms", said)
        monkeypatch.setenv("TAILORBIRD_API_KEY", KEY[::-1])
        code, _ = typed(*words)
        assert "does not know the key" in str(code)
    inside = {
        event["name"] for event in json.loads((tmp_path / "t.json").read_text()) if event.get("tid") == 3
    }
    assert {"chunk", "denoise", "wire"} <= inside


def test_limits_of_another_robot_are_refused(typed: Typed, tmp_path: Path) -> None:
    ours = {"names": ["x", "y"], "mode": "delta", "low": [-1, -1], "high": [1, 1]}
    (tmp_path / "arm.json").write_text(json.dumps(ours))
    code, _ = typed("run", "push-v3", "--policy", "ws://127.0.0.1:1", "--limits", tmp_path / "arm.json")
    assert re.search(
        r"the limits are for \('x', 'y'\), the robot's action is \('x', 'y', 'z', 'grip'\)", str(code)
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fly-v3"], "no task 'fly-v3' in Meta-World"),
        (["push-v3", "--hz", "40"], "set --hz 20"),
        (["push-v3", "--hz", "20.5"], "divides 80"),
        (["push-v3", "--seconds", "60"], "lower --seconds"),
        (["push-v3", "--seconds", "inf"], "must be positive and finite"),
        (["push-v3", "--refresh-s", "-1"], "refresh_s not negative"),
        (["push-v3", "--execute", "8"], "have 7 actions, not 8: lower --execute"),
        (["push-v3", "--max-age-s", "0"], "max_age_s=0"),
        (["lerobot:arm.json"], "say what to do with --task"),
        (["lerobot:arm.json", "--task", "go"], "say with --hz how many"),
        (["push-v3", "--rerun", "run.mp4"], "ends in .rrd"),
        (["push-v3", "--trace", "run.perfetto"], "ends in .json"),
        (["push-v3", "--limits", "no/such.toml"], "no/such.toml"),
        (["push-v3", "--mode", "reuse", "--policy", "ws://127.0.0.1:1"], "name a folder, not a server"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_moves(
    words: list[str],
    message: str,
    policy: Path,
    typed: Typed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _ = typed("run", "--policy", policy, *words)
    assert message in str(code)
    assert list(tmp_path.iterdir()) == []
