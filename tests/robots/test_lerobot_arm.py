"""lerobot's own SO-100 arm, driven over a serial line whose other end speaks as its servos do."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import lerobot_reference  # noqa: F401  makes lerobot importable without what its training needs

# isort: split
import numpy as np
import pytest
from lerobot.cameras import Camera, CameraConfig
from lerobot.robots.so_follower import SO100Follower, SO100FollowerConfig
from numpy.typing import NDArray

from feetech import GOAL, HOMING, MAX_POSITION, MIN_POSITION, PING, PRESENT, SYNC_READ, TORQUE, Line, Servo
from tailorbird.control.clock import SimClock
from tailorbird.control.config import LoopConfig
from tailorbird.control.runtime import drive
from tailorbird.control.safety import Guard, Limits
from tailorbird.control.thinkers import Synchronous
from tailorbird.errors import ConfigError, RobotError
from tailorbird.robots.lerobot import PACE, LeRobot, load_robot
from tailorbird.wire import ActionChunk, Observation

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
NAMES = tuple(f"{joint}.pos" for joint in JOINTS)
LOW, HIGH = 1023, 3071  # a servo's turn has 4096 steps
DEGREE = 4095 / 360
QUARTER = (HIGH - LOW) / 2 / DEGREE
FREE = Limits(names=NAMES, mode="absolute", low=(-180,) * 6, high=(180,) * 6)


@CameraConfig.register_subclass("chart")
@dataclass
class ChartConfig(CameraConfig):
    pass


class Chart(Camera):
    """Shows each pixel's row and column, and how often it was looked at."""

    plugged, looks, dtype = True, 0, np.uint8

    @property
    def is_connected(self) -> bool:
        return self.plugged and self.looks > 0

    @staticmethod
    def find_cameras() -> list[dict[str, Any]]:
        return []

    def connect(self, warmup: bool = True) -> None:
        self.read()

    def read(self) -> NDArray[Any]:
        self.looks += 1
        assert self.height is not None
        assert self.width is not None
        rows, columns = np.mgrid[: self.height, : self.width]
        return np.stack([rows, columns, np.full_like(rows, self.looks)], axis=-1).astype(self.dtype)

    def async_read(self, timeout_ms: float = 200) -> NDArray[Any]:
        return self.read()

    def read_latest(self, max_age_ms: int = 500) -> NDArray[Any]:
        return self.read()

    def disconnect(self) -> None:
        self.looks = 0


@pytest.fixture
def line() -> Iterator[Line]:
    """Six servos, calibrated, that stand 0, 10, .. 50 degrees from the middle of their range."""
    servos = {number: Servo() for number in range(1, 7)}
    for number, servo in servos.items():
        servo.put(MIN_POSITION, LOW)
        servo.put(MAX_POSITION, HIGH)
        servo.put(HOMING, 7 * number)
        servo.put(PRESENT, round((LOW + HIGH) / 2 + (number - 1) * 10 * DEGREE))
    with Line(servos) as line:
        yield line


@pytest.fixture
def build(line: Line, tmp_path: Path) -> Callable[..., SO100Follower]:
    def build(**settings: Any) -> SO100Follower:
        calibration = {
            joint: {"id": i, "drive_mode": 0, "homing_offset": 7 * i, "range_min": LOW, "range_max": HIGH}
            for i, joint in enumerate(JOINTS, 1)
        }
        (tmp_path / "arm.json").write_text(json.dumps(calibration))
        cameras = {"front": ChartConfig(fps=30, width=8, height=6)}
        fields = {"port": line.port, "id": "arm", "calibration_dir": tmp_path, "cameras": cameras} | settings
        return SO100Follower(SO100FollowerConfig(**fields))

    return build


Build = Callable[..., SO100Follower]


def test_the_state_is_what_the_motors_say_in_degrees_and_the_pictures_are_the_cameras(build: Build) -> None:
    clock = SimClock()
    clock.sleep_until(3.5)
    with LeRobot(build(), task="pick it up", clock=clock) as arm:
        first, second = arm.observe(), arm.observe()
    assert arm.joints == NAMES
    assert first.state.dtype == np.float32
    assert first.state[:5] == pytest.approx([0, 10, 20, 30, 40], abs=1 / DEGREE)
    assert first.state[5] == pytest.approx(50 + 50 / QUARTER * 50, abs=0.1)  # a gripper is in percent
    assert (first.task, first.time_s) == ("pick it up", 3.5)
    picture = first.images["front"]
    assert (picture.shape, picture.dtype) == ((6, 8, 3), np.uint8)
    assert picture[4, 7].tolist() == [4, 7, 2]  # the first was taken to connect
    assert second.images["front"][0, 0].tolist() == [0, 0, 3]


def test_goals_reach_the_motors_in_the_order_of_the_action(build: Build, line: Line) -> None:
    with LeRobot(build(), task="", clock=SimClock()) as arm:
        assert arm.act(np.array([-30, -20, 0, 20, 30, 75], np.float32)) is False
        moved = arm.observe().state
    assert moved == pytest.approx([-30, -20, 0, 20, 30, 75], abs=0.1)
    middle = (LOW + HIGH) / 2
    assert line.servos[1].get(GOAL) == int(middle - 30 * DEGREE)
    assert line.servos[6].get(GOAL) == int(LOW + 0.75 * (HIGH - LOW))


def test_torque_is_on_while_the_robot_is_used_and_off_afterwards(build: Build, line: Line) -> None:
    def stumble() -> None:
        with LeRobot(build(), task="", clock=SimClock()):
            assert all(servo.registers[TORQUE] for servo in line.servos.values())
            raise ValueError("over a stone")

    with pytest.raises(ValueError, match="over a stone"):
        stumble()
    assert not any(servo.registers[TORQUE] for servo in line.servos.values())


def test_torque_is_off_afterwards_though_a_camera_was_pulled_out(build: Build, line: Line) -> None:
    robot = build()
    with LeRobot(robot, task="", clock=SimClock()) as arm:
        robot.cameras["front"].plugged = False
        with pytest.raises(RobotError, match="cannot be read"):
            arm.observe()
    assert not any(servo.registers[TORQUE] for servo in line.servos.values())


def test_an_answer_that_does_not_come_is_an_error_that_names_the_motors_and_the_next_one_is_fine(
    build: Build, line: Line
) -> None:
    with LeRobot(build(), task="", clock=SimClock()) as arm:
        line.silent.add(3)
        with pytest.raises(
            RobotError, match=r"cannot be read: Failed to sync read 'Present_Position' .*no status"
        ):
            arm.observe()
        line.silent.clear()
        assert arm.observe().state[2] == pytest.approx(20, abs=0.1)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_torque_is_off_though_connecting_was_interrupted(
    build: Build, line: Line, interruption: type[BaseException]
) -> None:
    robot = build()
    whole = robot.configure

    def interrupted() -> None:
        whole()
        assert all(servo.registers[TORQUE] for servo in line.servos.values())
        raise interruption

    robot.configure = interrupted
    with pytest.raises(interruption):
        LeRobot(robot, task="", clock=SimClock()).__enter__()
    assert not any(servo.registers[TORQUE] for servo in line.servos.values())


def test_a_motor_that_is_missing_is_named_before_any_torque_is_on(build: Build, line: Line) -> None:
    line.silent.add(4)
    robot = build()
    with pytest.raises(RobotError, match=r"cannot connect: .*Missing motor IDs: - 4"):
        LeRobot(robot, task="", clock=SimClock()).__enter__()
    assert not any(servo.registers[TORQUE] for servo in line.servos.values())


def test_a_motor_that_is_silent_at_the_end_is_an_error_and_the_others_let_go(
    build: Build, line: Line
) -> None:
    arm = LeRobot(build(cameras={}), task="", clock=SimClock())
    arm.__enter__()
    line.silent.add(2)
    with pytest.raises(RobotError, match="torque may still be on: cut the power"):
        arm.__exit__(None, None, None)
    assert not any(servo.registers[TORQUE] for servo in line.servos.values())


def test_a_robot_with_another_calibration_is_refused(build: Build, line: Line) -> None:
    line.servos[2].put(MAX_POSITION, HIGH + 5)
    with pytest.raises(RobotError, match="lerobot-calibrate"):
        LeRobot(build(), task="", clock=SimClock()).__enter__()
    assert not any(servo.registers[TORQUE] for servo in line.servos.values())


def test_the_limits_are_the_calibrated_ranges(build: Build) -> None:
    arm = LeRobot(build(), task="", clock=SimClock())
    assert arm.limits.names == NAMES
    assert arm.limits.mode == "absolute"
    assert arm.limits.low == pytest.approx([-QUARTER] * 5 + [0])
    assert arm.limits.high == pytest.approx([QUARTER] * 5 + [100])
    percent = LeRobot(build(use_degrees=False), task="", clock=SimClock())
    assert percent.limits.low == (-100.0,) * 5 + (0.0,)


def test_by_default_no_motor_crosses_its_range_in_less_than_two_seconds(build: Build) -> None:
    limits = LeRobot(build(), task="", clock=SimClock()).limits
    assert limits.max_velocity is not None
    assert limits.max_velocity == pytest.approx([PACE * 2 * QUARTER] * 5 + [PACE * 100])
    assert PACE == 0.5


def test_without_a_calibration_somebody_must_say_what_the_robot_may_do(build: Build) -> None:
    uncalibrated = build(id="unknown")
    with pytest.raises(
        ConfigError, match=r"nothing is known of .*'gripper.pos'.* lerobot-calibrate, .*--limits"
    ):
        LeRobot(uncalibrated, task="", clock=SimClock())
    assert LeRobot(uncalibrated, task="", clock=SimClock(), limits=FREE).limits is FREE


def test_where_it_is_comes_in_the_order_and_units_of_the_action(build: Build) -> None:
    with LeRobot(build(), task="", clock=SimClock()) as arm:
        at = arm.position()
        assert at is not None
        assert at.tolist() == arm.observe().state.tolist()


class Pose:
    """An arm that is told where its hand should be, and measures its joints."""

    observation_features: ClassVar = {"elbow.pos": float, "gripper.pos": float}
    action_features: ClassVar = {"x": float, "gripper.pos": float}
    is_connected = is_calibrated = True

    def connect(self, calibrate: bool = True) -> None: ...
    def disconnect(self) -> None: ...
    def send_action(self, action: dict[str, Any]) -> None: ...
    def get_observation(self) -> dict[str, Any]:
        return {"elbow.pos": 12.0, "gripper.pos": 34.0}


def test_a_position_that_is_not_measured_cannot_be_bounded_in_velocity() -> None:
    names, bounds = ("x", "gripper.pos"), {"low": (-90.0, 0.0), "high": (90.0, 100.0)}
    bounded = Limits(names=names, mode="absolute", max_velocity=(1, 2), **bounds)
    with pytest.raises(ConfigError, match=r"\['x'\] cannot be bounded in velocity .*'elbow.pos'"):
        LeRobot(Pose(), task="", clock=SimClock(), limits=bounded)
    unbounded = Limits(names=names, mode="absolute", **bounds)
    assert LeRobot(Pose(), task="", clock=SimClock(), limits=unbounded).position() is None
    moving = Limits(names=names, mode="velocity", max_velocity=(1, 2), keep=names[1:], **bounds)
    at = LeRobot(Pose(), task="", clock=SimClock(), limits=moving).position()
    assert at is not None
    assert at.tolist() == [0.0, 34.0]  # a velocity has no place


def test_what_it_will_see_is_known_without_touching_it(build: Build, line: Line) -> None:
    arm = LeRobot(build(), task="pick it up", clock=SimClock())
    imagined = arm.imagine()
    assert line.heard == []
    with arm:
        seen = arm.observe()
    assert (imagined.task, imagined.state.shape, imagined.state.dtype) == (
        seen.task,
        seen.state.shape,
        seen.state.dtype,
    )
    assert {name: (p.shape, p.dtype) for name, p in imagined.images.items()} == {
        "front": ((6, 8, 3), np.uint8)
    }


def test_limits_for_other_joints_are_refused(build: Build) -> None:
    with pytest.raises(ConfigError, match="the limits are for"):
        LeRobot(build(), task="", clock=SimClock(), limits=Limits.free(6))


def test_a_picture_that_is_not_what_was_promised_is_an_error(build: Build) -> None:
    robot = build()
    with LeRobot(robot, task="", clock=SimClock()) as arm:
        robot.cameras["front"].dtype = np.float32
        with pytest.raises(RobotError, match=r"camera 'front' should give \(6, 8, 3\) of bytes"):
            arm.observe()


def test_a_control_loop_moves_the_arm_within_its_limits(build: Build, line: Line) -> None:
    def think(seen: Observation) -> ActionChunk:
        goal = np.array([95, -95, 5, 5, 5, 50], np.float32)
        return ActionChunk(actions=np.tile(goal, (4, 1)), time_s=seen.time_s)

    clock = SimClock()
    with LeRobot(build(), task="", clock=clock) as arm:
        guard = Guard(arm.limits, 20.0)
        guard.begin(arm.position())
        cfg = LoopConfig(hz=20, execute=2, max_ticks=60, halt=False)
        actions = np.array(drive(arm, Synchronous(think, clock), clock, cfg, guard=guard).actions)
    assert guard.counts["position"] == len(actions) == 60
    assert np.abs(np.diff(actions, axis=0)).max() <= PACE * 2 * QUARTER / 20 + 1e-3
    assert actions[0, :2] == pytest.approx([QUARTER / 20, 10 - QUARTER / 20], abs=0.1)
    assert [line.servos[number].get(GOAL) for number in (1, 2)] == pytest.approx([HIGH, LOW], abs=1)
    assert SYNC_READ in line.heard
    assert PING in line.heard


# Built from a file


def test_a_robot_is_built_from_a_file_in_lerobots_words(line: Line, tmp_path: Path) -> None:
    path = tmp_path / "robot.json"
    camera = {"type": "chart", "width": 8, "height": 6, "fps": 30}
    told = {"type": "so101_follower", "port": line.port, "id": "a", "calibration_dir": str(tmp_path)}
    path.write_text(json.dumps(told | {"cameras": {"front": camera}}))
    robot = load_robot(path)
    assert isinstance(robot, SO100Follower)
    assert robot.bus.port == line.port
    assert isinstance(robot.cameras["front"], Chart)


@pytest.mark.parametrize(
    "text", ["{", '{"type": "so900"}', '{"type": "so101_follower"}', "[]", '{"port": "a"}']
)
def test_a_file_that_describes_no_robot_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "robot.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"no robot in .*lerobot offers .*so101_follower"):
        load_robot(path)
