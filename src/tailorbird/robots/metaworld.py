"""Meta-World as a robot: what its actions may be, and a machine of its own that waits for nobody."""

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from math import prod
from multiprocessing.shared_memory import SharedMemory
from multiprocessing.synchronize import Event

import numpy as np
from numpy.typing import NDArray

from tailorbird.control.safety import Limits
from tailorbird.errors import ConfigError, SimulatorError
from tailorbird.sim.config import HORIZON, SIM_HZ, SimConfig
from tailorbird.sim.metaworld import MetaWorld
from tailorbird.sim.tasks import INSTRUCTIONS
from tailorbird.wire import Observation

LIMITS = Limits(  # what its environments clip to; a grip is closed so far
    names=("x", "y", "z", "grip"), mode="delta", low=(-1,) * 4, high=(1,) * 4, keep=("grip",)
)
SLOTS = 3  # pictures of a camera: one is read, one is the newest, one is being taken
NUMBERS = 10
START_S = 60.0
SLOWEST_S = 0.2  # between two pictures of a camera, although the steps are late already
LATEST_S = 0.1  # a simulator that fell behind by more lets the time go


@dataclass(frozen=True, kw_only=True)
class RealTimeConfig:
    """What is simulated, and what is seen of it.

    Attributes:
        cameras: Meta-World's names, see `SimConfig`.
        fps: pictures that each camera takes a second, if there is time for them.
        nice: how far the simulator gives way to the loop that drives it.
    """

    task: str
    cameras: tuple[str, ...] = ("corner2",)
    size: int = 192
    fps: float = 30.0
    seed: int = 0
    nice: int = 5

    def __post_init__(self) -> None:
        if self.task not in INSTRUCTIONS:
            raise ConfigError(f"no task {self.task!r} in Meta-World; there are {', '.join(INSTRUCTIONS)}")
        if not self.cameras or len({*self.cameras}) < len(self.cameras):
            raise ConfigError(f"a robot needs cameras, each once: {self.cameras}")
        if not 0 < self.fps < float("inf"):
            raise ConfigError(f"a camera takes pictures: {self.fps=} must be positive")


@dataclass(frozen=True)
class _Shared:
    """What the two processes have in common. A view of it that is kept is in the way of closing it."""

    memory: SharedMemory
    num_cameras: int
    size: int

    @staticmethod
    def bytes_for(num_cameras: int, size: int) -> int:
        return 8 * (NUMBERS + num_cameras * (1 + SLOTS)) + num_cameras * SLOTS * size * size * 3

    @property
    def numbers(self) -> NDArray[np.float64]:
        """State, action, episodes that were solved, when the state was read."""
        return np.frombuffer(self._bytes, np.float64, NUMBERS)

    @property
    def counts(self) -> NDArray[np.int64]:
        """(num_cameras,): pictures that each camera has taken."""
        return np.frombuffer(self._bytes, np.int64, self.num_cameras, 8 * NUMBERS)

    @property
    def times(self) -> NDArray[np.float64]:
        """(num_cameras, SLOTS): when each was taken."""
        start = 8 * (NUMBERS + self.num_cameras)
        return np.frombuffer(self._bytes, np.float64, self.num_cameras * SLOTS, start).reshape(-1, SLOTS)

    @property
    def pictures(self) -> NDArray[np.uint8]:
        """(num_cameras, SLOTS, size, size, 3)."""
        start = 8 * (NUMBERS + self.num_cameras * (1 + SLOTS))
        shape = (self.num_cameras, SLOTS, self.size, self.size, 3)
        return np.frombuffer(self._bytes, np.uint8, prod(shape), start).reshape(shape)

    @property
    def _bytes(self) -> memoryview:
        assert self.memory.buf is not None
        return self.memory.buf


STATE, ACTION, SOLVED, TIME = slice(0, 4), slice(4, 8), 8, 9


class RealTimeSim:
    """Meta-World as a machine: it executes the last command until the next one, and never waits for anybody.

    Its clock is `time.perf_counter`. After 500 steps of the simulator, 6.25 s, it begins the next episode by
    itself. Reading it and commanding it take no longer than copying the pictures.
    """

    def __init__(self, cfg: RealTimeConfig) -> None:
        """
        Raises:
            SimulatorError: it does not start.
        """
        num_cameras = len(cfg.cameras)
        self._memory = SharedMemory(create=True, size=_Shared.bytes_for(num_cameras, cfg.size))  # all zero
        self.cfg, self._shared = cfg, _Shared(self._memory, num_cameras, cfg.size)
        self.task = INSTRUCTIONS[cfg.task]
        context = multiprocessing.get_context("spawn")
        self._ready, self._over = context.Event(), context.Event()
        self._process = context.Process(
            target=_simulate, args=(cfg, self._memory.name, self._ready, self._over), daemon=True
        )
        self._process.start()
        end = time.monotonic() + START_S
        while not self._ready.wait(0.1):
            if not self._process.is_alive() or time.monotonic() > end:
                self.close()
                raise SimulatorError(
                    f"the simulator of {cfg.task} did not start: `tailorbird doctor` says why"
                )

    @property
    def limits(self) -> Limits:
        return LIMITS

    @property
    def solved(self) -> int:
        """Episodes that ended with the task done."""
        return int(self._shared.numbers[SOLVED])

    def observe(self) -> Observation:
        """The newest picture of each camera and the newest state.

        Raises:
            SimulatorError: the simulator has died.
        """
        self._require_life()
        shared, images, taken = self._shared, {}, {}
        newest = (shared.counts - 1) % SLOTS
        for i, name in enumerate(self.cfg.cameras):
            images[name] = shared.pictures[i, newest[i]].copy()
            taken[name] = float(shared.times[i, newest[i]])
        state, time_s = shared.numbers[STATE].astype(np.float32), float(shared.numbers[TIME])
        return Observation(images=images, state=state, task=self.task, time_s=time_s, image_time_s=taken)

    def act(self, action: NDArray[np.float32]) -> bool:
        """Raises SimulatorError when the simulator has died."""
        self._require_life()
        self._shared.numbers[ACTION] = action
        return False

    def _require_life(self) -> None:
        if not self._process.is_alive():
            raise SimulatorError(
                f"the simulator of {self.cfg.task} has died; when memory is short, free some"
            )

    def close(self) -> None:
        self._over.set()
        self._process.join(5)
        self._process.kill()
        self._memory.close()
        self._memory.unlink()


def _simulate(cfg: RealTimeConfig, name: str, ready: Event, over: Event) -> None:
    """Steps at their times, and in what is left of a step's time the picture that is the oldest."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what Ctrl-C means is for the loop to say
    os.nice(cfg.nice)
    parent = multiprocessing.parent_process()
    shared = _Shared(SharedMemory(name), len(cfg.cameras), cfg.size)
    numbers, counts, times, pictures = shared.numbers, shared.counts, shared.times, shared.pictures
    env = MetaWorld(cfg.task, SimConfig(camera=cfg.cameras[0], size=cfg.size, control_hz=SIM_HZ))
    env.restart(cfg.seed)

    def shoot(i: int) -> None:
        slot = int(counts[i]) % SLOTS
        times[i, slot] = time.perf_counter()
        pictures[i, slot] = env.photograph(cfg.size, camera=cfg.cameras[i])
        counts[i] += 1  # last: only then is the picture there

    for i in range(len(cfg.cameras)):
        shoot(i)
    numbers[STATE], numbers[TIME] = env.state, time.perf_counter()
    ready.set()
    due = time.perf_counter()
    step = episode = solved = 0
    while not over.is_set() and parent is not None and parent.is_alive():
        oldest = int(counts.argmin())
        age_s = (now := time.perf_counter()) - times[oldest].max()
        if age_s > SLOWEST_S or (age_s > 1 / cfg.fps and now < due):
            shoot(oldest)
        time.sleep(max(0.0, due - time.perf_counter()))
        if step == HORIZON:
            step, episode = 0, episode + 1
            numbers[SOLVED] += solved
            solved = 0
            env.restart(cfg.seed + episode)
        solved |= env.advance(numbers[ACTION])
        numbers[STATE], numbers[TIME] = env.state, time.perf_counter()
        step += 1
        due = max(due + 1 / SIM_HZ, time.perf_counter() - LATEST_S)
    os._exit(0)  # the views of the shared memory are in the way of closing it
