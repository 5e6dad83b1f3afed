"""Robots that lerobot drives, an SO-100 or SO-101 arm for one, as the control loop sees a robot."""

import json
import pkgutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from tailorbird.control.clock import Clock
from tailorbird.control.safety import Action, Limits
from tailorbird.errors import ConfigError, RobotError
from tailorbird.wire import Observation

INSTALL = "Install lerobot: pip install '.[lerobot]' in Tailorbird's checkout, with Python 3.12 or later"
FAILURES = (OSError, RuntimeError)  # what lerobot raises for a bus or camera that does not answer
PACE = 0.5  # of its calibrated range that a motor moves in a second at most: 2 s from end to end


class Driver(Protocol):
    """The part of `lerobot.robots.Robot` that is used here; releases 0.4.4 to 0.6.1 have it."""

    @property
    def observation_features(self) -> Mapping[str, Any]: ...
    @property
    def action_features(self) -> Mapping[str, Any]: ...
    @property
    def is_connected(self) -> bool: ...
    @property
    def is_calibrated(self) -> bool: ...
    def connect(self, calibrate: bool = True) -> None: ...
    def get_observation(self) -> Mapping[str, Any]: ...
    def send_action(self, action: dict[str, Any]) -> Any: ...
    def disconnect(self) -> None: ...


class LeRobot:
    """A robot for `tailorbird.control.runtime.drive`. Use it as a context: torque is off afterwards.

    The state is made of the numbers that `observation_features` names, the action of those that
    `action_features` does, both in that order and in lerobot's units (degrees, or percent of the calibrated
    range), as in datasets that lerobot recorded. How old a picture is lerobot does not tell.

    Args:
        robot: not connected yet, and calibrated before, by `lerobot-calibrate`.
        task: the instruction for the policy.
        limits: by default the calibrated range of each motor, at a careful pace; see `limits_of`.
    Raises:
        ConfigError: nothing is known of what a motor may do, the limits are for other dimensions or need a
            position that the robot does not measure, or a camera gives something else than RGB.
    """

    def __init__(self, robot: Driver, *, task: str, clock: Clock, limits: Limits | None = None) -> None:
        self._robot, self._task, self._clock = robot, task, clock
        seen = robot.observation_features
        self.joints = tuple(name for name, kind in seen.items() if not isinstance(kind, tuple))
        self.cameras = {name: kind for name, kind in seen.items() if isinstance(kind, tuple)}
        self.limits = limits or limits_of(robot)
        if self.limits.names != (names := tuple(robot.action_features)):
            raise ConfigError(f"the limits are for {self.limits.names}, the robot's action is {names}")
        positions = zip(names, self.limits.are_positions, strict=True)
        unseen = [name for name, is_position in positions if is_position and name not in self.joints]
        if unseen and self.limits.max_velocity is not None:
            raise ConfigError(
                f"{unseen} cannot be bounded in velocity from the start: the robot measures {self.joints}"
            )
        self._is_measured = not unseen
        if odd := [name for name, shape in self.cameras.items() if len(shape) != 3 or shape[2] != 3]:
            raise ConfigError(f"cameras {odd} do not give (height, width, 3); switch off what is not RGB")

    def __enter__(self) -> "LeRobot":
        with _named("cannot connect"):
            try:
                self._robot.connect(calibrate=False)
                if not self._robot.is_calibrated:
                    raise RuntimeError(
                        "its motors are not calibrated as its file says; run lerobot-calibrate"
                    )
            except BaseException:  # an interruption too must not leave the torque on
                with suppress(*FAILURES):  # the first error tells more
                    self._let_go()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _named("torque may still be on: cut the power. It cannot disconnect"):
            self._let_go()

    def _let_go(self) -> None:
        """Disconnect, and switch off whatever motor can be even where lerobot gives up."""
        bus: Any = getattr(self._robot, "bus", None)
        try:
            if bus is None or self._robot.is_connected:
                self._robot.disconnect()
            elif bus.is_connected:  # without a camera lerobot's robot counts as away, and refuses
                bus.disconnect()
        except FAILURES:
            for motor in getattr(bus, "motors", ()):  # lerobot stops at the first that does not answer
                with suppress(*FAILURES):
                    bus.disable_torque(motor)
            raise

    def observe(self) -> Observation:
        """Read the joints, and take the newest picture of every camera.

        Raises:
            RobotError: a motor or a camera does not answer, or a picture is not what was promised.
        """
        now_s = self._clock.now()
        with _named("cannot be read"):
            seen = self._robot.get_observation()
        for name, shape in self.cameras.items():
            if np.shape(seen[name]) != shape or seen[name].dtype != np.uint8:
                raise RobotError(
                    f"camera {name!r} should give {shape} of bytes, gives {np.shape(seen[name])}"
                )
        return Observation(
            images={name: np.ascontiguousarray(seen[name]) for name in self.cameras},
            state=np.array([seen[name] for name in self.joints], np.float32),
            task=self._task,
            time_s=now_s,
        )

    def imagine(self) -> Observation:
        """What it will see, in black and at zero, without being connected: to warm a policy up with."""
        images = {name: np.zeros(shape, np.uint8) for name, shape in self.cameras.items()}
        state = np.zeros(len(self.joints), np.float32)
        return Observation(images=images, state=state, task=self._task, time_s=self._clock.now())

    def position(self) -> Action | None:
        """Where it is, (A,), as an action says it, 0 for what is no position; None if that is not measured.

        Raises:
            RobotError: it cannot be read.
        """
        if not self._is_measured:
            return None
        joints = dict(zip(self.joints, self.observe().state.tolist(), strict=True))
        return np.array([joints.get(name, 0.0) for name in self.limits.names], np.float32)

    def act(self, action: Action) -> bool:
        """Send the goal of each joint. Never says that the task is done.

        Raises:
            RobotError: the bus is gone. Goals are not acknowledged, so a lost one goes unnoticed.
        """
        with _named("does not take an action"):
            self._robot.send_action(dict(zip(self.limits.names, action.tolist(), strict=True)))
        return False


@contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except FAILURES as error:
        raise RobotError(f"robot {what}: {' '.join(str(error).split())}") from error


def limits_of(robot: Driver) -> Limits:
    """Positions within the calibrated range of each motor on the robot's bus, at `PACE`.

    Raises:
        ConfigError: an action is no position of such a motor.
    """
    bus, names = getattr(robot, "bus", None), tuple(robot.action_features)
    ranges = {f"{name}.pos": _range(bus, name) for name in getattr(bus, "calibration", {})}
    if unknown := [name for name in names if name not in ranges]:
        raise ConfigError(
            f"nothing is known of what {unknown} may do: run lerobot-calibrate, or describe the robot in a "
            f"file for --limits"
        )
    low, high = zip(*(ranges[name] for name in names), strict=True)
    pace = tuple(PACE * (top - bottom) for bottom, top in zip(low, high, strict=True))
    return Limits(names=names, mode="absolute", low=low, high=high, max_velocity=pace)


def _range(bus: Any, name: str) -> tuple[float, float]:
    """As `MotorsBus._normalize` of lerobot scales it."""
    motor, known = bus.motors[name], bus.calibration[name]
    match motor.norm_mode.value:
        case "range_0_100":
            return 0.0, 100.0
        case "range_m100_100":
            return -100.0, 100.0
        case "degrees":
            turn = bus.model_resolution_table[motor.model] - 1
            half = (known.range_max - known.range_min) / 2 * 360 / turn
            return -half, half
    raise ConfigError(f"unknown scale {motor.norm_mode} of motor {name!r}; give the robot's limits in a file")


def load_robot(path: Path) -> Any:
    """Build the robot that a JSON file describes in lerobot's own words, as its commands take them.

    For example {"type": "so101_follower", "port": "/dev/ttyACM0", "id": "black", "cameras": {"front":
    {"type": "opencv", "index_or_path": 0, "width": 640, "height": 480, "fps": 30}}}.

    Raises:
        ConfigError: lerobot is absent, knows no such robot, or not such settings.
    """
    try:
        from draccus.parsers.decoding import decode
        from draccus.utils import ParsingError
        from lerobot.robots import RobotConfig, make_robot_from_config
    except ImportError as error:
        raise ConfigError(f"{error}. {INSTALL}") from error
    absent = _import_parts("lerobot.robots") | _import_parts("lerobot.cameras")
    try:
        return make_robot_from_config(decode(RobotConfig, json.loads(path.read_text())))
    except (OSError, ValueError, TypeError, ImportError, ParsingError) as error:
        kinds = ", ".join(sorted(RobotConfig.get_known_choices()))
        raise ConfigError(
            f"no robot in {path}: {error}. lerobot offers {kinds}; not importable: {absent}"
        ) from error


def _import_parts(package: str) -> dict[str, str]:
    """Make lerobot's kinds of robots or cameras known to it. Returns why some could not be imported."""
    absent = {}
    for part in pkgutil.iter_modules(import_module(package).__path__):
        try:
            import_module(f"{package}.{part.name}")
        except ImportError as error:
            absent[part.name] = str(error)
    return absent
