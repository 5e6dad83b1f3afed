"""`tailorbird run lerobot:FILE`: lerobot's own SO-100 arm on a serial line, driven by a real policy."""

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lerobot_reference  # noqa: F401  makes lerobot importable without what its training needs

# isort: split
import numpy as np
import pytest
from lerobot.cameras import Camera, CameraConfig
from numpy.typing import NDArray

from feetech import GOAL, HOMING, MAX_POSITION, MIN_POSITION, PRESENT, TORQUE, Line, Servo
from tailorbird.checkpoint.policy import write_policy
from tailorbird.live.trace import TraceWriter
from tailorbird.processing.image import ImageSpec
from tailorbird.processing.normalize import Normalizer
from tailorbird.processing.pipeline import Pipeline
from tailorbird.processing.text import InstructionTokenizer, train_tokenizer
from tailorbird.robots.lerobot import PACE
from tiny import TINY_VLA, new_model

Typed = Callable[..., tuple[int | str | None, str]]

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
LOW, HIGH = 1023, 3071  # a servo's turn has 4096 steps
TASK = "pick up the cube"
CFG = replace(TINY_VLA, state_dim=8, action_dim=9)


@CameraConfig.register_subclass("noise")
@dataclass
class NoiseConfig(CameraConfig):
    pass


class Noise(Camera):
    is_connected = True

    @staticmethod
    def find_cameras() -> list[dict[str, Any]]:
        return []

    def connect(self, warmup: bool = True) -> None:
        pass

    def read(self) -> NDArray[Any]:
        return np.random.default_rng().integers(0, 256, (self.height or 0, self.width or 0, 3), np.uint8)

    def async_read(self, timeout_ms: float = 200) -> NDArray[Any]:
        return self.read()

    def read_latest(self, max_age_ms: int = 500) -> NDArray[Any]:
        return self.read()

    def disconnect(self) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pipeline = Pipeline(
        cameras=("front",),
        image=ImageSpec(size=16),
        state=Normalizer(mean=(0.0,) * 6, std=(40.0,) * 6),
        action=Normalizer(mean=(0.0, 10.0, 20.0, 30.0, 40.0, 50.0), std=(1.0,) * 6),
        tokenizer=InstructionTokenizer(train_tokenizer([TASK], 300), 24),
        hz=30.0,
        state_dim=8,
        action_dim=9,
    )
    (tmp_path / "policy").mkdir()
    write_policy(tmp_path / "policy", new_model(CFG).state_dict(), CFG, pipeline)
    calibration = {
        joint: {"id": i, "drive_mode": 0, "homing_offset": 7 * i, "range_min": LOW, "range_max": HIGH}
        for i, joint in enumerate(JOINTS, 1)
    }
    (tmp_path / "left.json").write_text(json.dumps(calibration))
    return tmp_path


@pytest.fixture
def line(folder: Path) -> Iterator[Line]:
    """An arm in the middle of its range, described in arm.json."""
    servos = {number: Servo() for number in range(1, 7)}
    for number, servo in servos.items():
        servo.put(MIN_POSITION, LOW)
        servo.put(MAX_POSITION, HIGH)
        servo.put(HOMING, 7 * number)
        servo.put(PRESENT, (LOW + HIGH) // 2)
    camera = {"type": "noise", "fps": 30, "width": 32, "height": 24}
    with Line(servos) as line:
        arm = {"type": "so100_follower", "port": line.port, "id": "left", "calibration_dir": str(folder)}
        (folder / "arm.json").write_text(json.dumps(arm | {"cameras": {"front": camera}}))
        yield line


def command(folder: Path, *words: object) -> list[object]:
    arm = f"lerobot:{folder}/arm.json"
    return ["run", arm, "--policy", folder / "policy", "--task", TASK, "--seconds", 0.5, *words]


def traced(path: Path) -> NDArray[Any]:
    """The action of each tick."""
    events = json.loads(path.read_text())
    return np.array([event["args"]["action"] for event in events if "action" in event.get("args", {})])


def test_an_arm_moves_within_its_limits_and_lets_go(folder: Path, line: Line, typed: Typed) -> None:
    fastest = [30.0] * 6  # degrees a second: one a tick
    names = [f"{joint}.pos" for joint in JOINTS]
    limits = {"names": names, "mode": "absolute", "low": [-80] * 6, "high": [80] * 6, "max_velocity": fastest}
    (folder / "limits.json").write_text(json.dumps(limits))
    told = "--hz", 30, "--trace", folder / "t.json", "--limits", folder / "limits.json"
    code, said = typed(*command(folder, *told))
    assert code == 0, said
    assert re.search(r"ticks\W+15, ", said)
    assert re.search(r"velocity \d+", said)
    actions = traced(folder / "t.json")
    assert len(actions) == 15
    assert np.abs(np.diff(actions, axis=0)).max() <= 1.0 + 1e-3
    assert np.abs(actions[0, :5]).max() <= 1.0 + 0.1  # it began where the arm was
    assert line.servos[5].get(GOAL) > (LOW + HIGH) // 2 + 100  # on its way to 40 degrees
    assert not any(servo.registers[TORQUE] for servo in line.servos.values())


def test_without_limits_each_episode_begins_where_the_arm_is_and_goes_at_a_careful_pace(
    folder: Path, line: Line, typed: Typed
) -> None:
    told = "--hz", 30, "--trace", folder / "t.json", "--seconds", 0.2, "--episodes", 2, "--ensemble"
    code, said = typed(*command(folder, *told))
    assert code == 0, said
    a_tick = PACE * np.array([(HIGH - LOW) * 360 / 4095] * 5 + [100]) / 30
    actions = traced(folder / "t.json")
    assert len(actions) == 12
    assert (np.abs(actions[0] - [0, 0, 0, 0, 0, 50]) <= a_tick + 0.1).all()
    assert (np.abs(np.diff(actions, axis=0)) <= a_tick + 0.1).all()  # also from one episode to the next


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hz", 20], "set --hz 30"),
        (["--hz", 30, "--execute", 8], "lower --execute"),
        (["--hz", 30, "--rename", "side", "front"], "side"),
    ],
)
def test_an_arm_has_no_torque_until_the_policy_has_made_a_chunk(
    words: list[object], message: str, folder: Path, line: Line, typed: Typed
) -> None:
    code, _ = typed(*command(folder, *words))
    assert message in str(code)
    assert line.heard == []


def test_a_watcher_that_hangs_does_not_keep_the_power_on(
    folder: Path, line: Line, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = TraceWriter.close

    def close(writer: TraceWriter) -> None:
        end = time.monotonic() + 4
        while any(servo.registers[TORQUE] for servo in line.servos.values()):
            assert time.monotonic() < end, "the torque is still on"
            time.sleep(0.01)
        whole(writer)

    monkeypatch.setattr(TraceWriter, "close", close)
    code, said = typed(*command(folder, "--hz", 30, "--seconds", 0.1, "--trace", folder / "t.json"))
    assert code == 0, said
