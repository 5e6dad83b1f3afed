"""Meta-World v3 as a gymnasium environment that a language-conditioned policy can live in."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailorbird.errors import ConfigError, SimulatorError
from tailorbird.sim.camera import GL_REMEDY, Camera, choose_gl
from tailorbird.sim.config import HORIZON, SIM_HZ, SimConfig
from tailorbird.sim.tasks import INSTRUCTIONS
from tailorbird.wire import Observation

INSTALL = "Install the simulator: pip install '.[sim]' in Tailorbird's checkout"

try:
    import gymnasium
except ImportError as error:
    raise SimulatorError(f"{error}. {INSTALL}") from error

CORNER2 = (0.75, 0.075, 0.7)  # where published evaluations hang the camera corner2


class MetaWorld(gymnasium.Env[dict[str, Any], NDArray[np.float32]]):
    """One task. `reset(seed=s)` fixes the scene exactly, whatever was played before.

    Observations: {"pixels": {camera: (size, size, 3) uint8}, "agent_pos": (4,) float32 as `state`}. Actions:
    (4,) in [-1, 1], three displacements of the gripper (1 cm a simulator step at 1) and the closing force.
    `observe` and `advance` are the two halves of `step`, for callers that do not want a picture at every
    step.
    """

    metadata = {  # noqa: RUF012 (gymnasium declares it so)
        "render_modes": ["rgb_array"],
        "render_fps": SIM_HZ,
    }

    def __init__(
        self, task: str, cfg: SimConfig | None = None, render_mode: str | None = "rgb_array"
    ) -> None:
        if task not in INSTRUCTIONS:
            raise ConfigError(f"no task {task!r} in Meta-World; there are {', '.join(INSTRUCTIONS)}")
        choose_gl()
        try:
            from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE as ENVIRONMENTS
        except ModuleNotFoundError as error:
            raise SimulatorError(f"{error}. {INSTALL}") from error
        except Exception as error:  # MuJoCo loads OpenGL here, and its loaders raise whatever they like
            raise SimulatorError(f"MuJoCo cannot start: {error}. {GL_REMEDY}") from error
        self.task, self.instruction = task, INSTRUCTIONS[task]
        self.cfg = cfg or SimConfig()
        self.metadata = {**self.metadata, "render_fps": self.cfg.control_hz}
        self.render_mode = render_mode
        self._sim = ENVIRONMENTS[f"{task}-goal-observable"]()
        self._sim.seeded_rand_vec, self._sim._freeze_rand_vec = True, False
        self._cameras: dict[tuple[str, int, bool], Camera] = {}
        names = [self._sim.model.camera(i).name for i in range(self._sim.model.ncam)]
        if self.cfg.camera not in names:
            raise ConfigError(f"no camera {self.cfg.camera!r} in Meta-World; there are {', '.join(names)}")
        self._sim.model.camera("corner2").pos[:] = CORNER2
        self._steps = 0
        self._full: NDArray[np.float64] = np.zeros(39)
        picture = gymnasium.spaces.Box(0, 255, (self.cfg.size, self.cfg.size, 3), np.uint8)
        proprio = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)
        pixels = gymnasium.spaces.Dict({self.cfg.camera: picture})
        self.observation_space = gymnasium.spaces.Dict({"pixels": pixels, "agent_pos": proprio})
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)

    @property
    def privileged(self) -> NDArray[np.float64]:
        """The full state, (39,), objects and goal included: for scripted experts, never for a policy."""
        return self._full

    @property
    def time_s(self) -> float:
        """Simulated time since the reset."""
        return self._steps / SIM_HZ

    @property
    def state(self) -> NDArray[np.float32]:
        """What the arm feels, (4,): the gripper's position in m and its opening in [0, 1]."""
        return self._full[:4].astype(np.float32)

    def photograph(self, size: int, *, fast: bool = True, camera: str | None = None) -> NDArray[np.uint8]:
        """A picture of the scene as it is, (size, size, 3). Cameras are opened once and kept."""
        key = (camera or self.cfg.camera, size, fast)
        if key not in self._cameras:
            self._cameras[key] = Camera(self._sim.model, key[0], size, fast=fast)
        return self._cameras[key].shoot(self._sim.data)

    def observe(self) -> Observation:
        """Take a picture and read the proprioception."""
        picture = self.photograph(self.cfg.size, fast=not self.cfg.faithful)
        return Observation(
            images={self.cfg.camera: picture}, state=self.state, task=self.instruction, time_s=self.time_s
        )

    def advance(self, action: NDArray[np.floating]) -> bool:
        """Hold one action for 1 / control_hz. Returns whether the task is solved at any moment of it.

        Raises:
            SimulatorError: the action is not four finite numbers, or the horizon of 500 simulator steps is
                over.
        """
        action = np.asarray(action, np.float64)
        if action.shape != (4,) or not np.isfinite(action).all():
            raise SimulatorError(f"an action is 4 finite numbers in [-1, 1], got {action.tolist()}")
        solved = False
        for _ in range(self.cfg.repeat):
            if self._steps >= HORIZON:
                raise SimulatorError(f"the episode is over after {HORIZON} simulator steps; reset first")
            self._full, _, _, _, info = self._sim.step(action.clip(-1, 1))
            self._steps += 1
            solved |= bool(info["success"])
        return solved

    def restart(self, seed: int) -> None:
        """Put the scene into the state that belongs to the seed, without taking a picture."""
        import mujoco

        self._sim.seed(seed)
        self._full, _ = self._sim.reset()
        mujoco.mj_forward(self._sim.model, self._sim.data)  # else what is drawn lags behind the reset
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.restart(int(self.np_random.integers(2**31)) if seed is None else seed)
        return self._as_gym(self.observe()), {"instruction": self.instruction}

    def step(self, action: NDArray[np.float32]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        solved = self.advance(action)
        over = self._steps + self.cfg.repeat > HORIZON
        return self._as_gym(self.observe()), float(solved), solved, over, {"success": solved}

    def render(self) -> NDArray[np.uint8]:
        return self.photograph(self.cfg.size, fast=not self.cfg.faithful)

    def close(self) -> None:
        for camera in self._cameras.values():
            camera.close()
        self._cameras.clear()

    def _as_gym(self, seen: Observation) -> dict[str, Any]:
        return {"pixels": seen.images, "agent_pos": seen.state}


_held: dict[tuple[str, SimConfig], MetaWorld] = {}


def open_simulator(task: str, cfg: SimConfig) -> MetaWorld:
    """The simulator that this process keeps from episode to episode, while task and settings are the same."""
    if (task, cfg) not in _held:
        for env in _held.values():
            env.close()
        _held.clear()
        _held[task, cfg] = MetaWorld(task, cfg)
    return _held[task, cfg]
