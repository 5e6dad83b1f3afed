"""The robot of a run: Meta-World, whose time passes like ours, or one that lerobot drives."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from tailorbird.control.clock import RealClock, first_in_line
from tailorbird.control.runtime import Robot
from tailorbird.control.safety import Action, Limits
from tailorbird.errors import ConfigError
from tailorbird.evals.rollout import SimRobot
from tailorbird.recipes.run_config import RunConfig
from tailorbird.sim.config import HORIZON, SIM_HZ
from tailorbird.sim.metaworld import MetaWorld
from tailorbird.sim.tasks import INSTRUCTIONS
from tailorbird.wire import Observation


@dataclass(frozen=True, kw_only=True)
class Body:
    """A robot that is not switched on yet.

    sample: what it will see, for a policy to warm up with.
    begin: an episode, with a seed. Returns where the robot then is, if that is known.
    power: switches the robot on, and off afterwards.
    halt: whether it goes on by itself with the last command.
    turn: lets the loop go first, where that is safe. Not with a driver that polls a bus: it would starve the
        kernel's threads that bring the answer.
    """

    robot: Robot
    sample: Observation
    begin: Callable[[int], Action | None]
    power: AbstractContextManager[object]
    halt: bool
    turn: AbstractContextManager[object]


@contextmanager
def build_body(env: str, cfg: RunConfig, bounds: Limits | None) -> Iterator[Body]:
    kind, _, file = env.partition(":")
    if kind == "lerobot":
        yield _build_arm(Path(file), cfg, bounds)
        return
    with closing(_open_simulator(env, cfg)) as world:
        robot = SimRobot(world, instruction=INSTRUCTIONS[env])
        if bounds is not None and bounds.names != (names := robot.limits.names):
            raise ConfigError(f"the limits are for {bounds.names}, the robot's action is {names}")
        world.restart(cfg.seed)
        yield Body(
            robot=robot,
            sample=robot.observe(),
            begin=world.restart,
            power=nullcontext(),
            halt=False,
            turn=first_in_line(),
        )


def _build_arm(file: Path, cfg: RunConfig, bounds: Limits | None) -> Body:
    from tailorbird.robots.lerobot import LeRobot, load_robot

    if cfg.task is None:
        raise ConfigError("a real robot has no instruction of its own: say what to do with --task")
    if cfg.hz is None:
        raise ConfigError(
            "a real robot has no rate of its own: say with --hz how many actions a second it takes"
        )
    arm = LeRobot(load_robot(file), task=cfg.task, clock=RealClock(), limits=bounds)
    return Body(
        robot=arm,
        sample=arm.imagine(),
        begin=lambda _: arm.position(),
        power=arm,
        halt=True,
        turn=nullcontext(),
    )


def _open_simulator(task: str, cfg: RunConfig) -> MetaWorld:
    if cfg.task is not None:
        raise ConfigError(f"{task} has its own instruction: leave --task out")
    if cfg.rate != int(cfg.rate):
        raise ConfigError(f"--hz {cfg.rate:g}: the simulator takes a whole number that divides {SIM_HZ}")
    if cfg.seconds > HORIZON / SIM_HZ:
        raise ConfigError(
            f"the simulator plays {HORIZON / SIM_HZ} s at most: lower --seconds {cfg.seconds:g}"
        )
    return MetaWorld(task, replace(cfg.sim, control_hz=int(cfg.rate)))
