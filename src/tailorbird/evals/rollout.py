"""Closed-loop runs of a policy in the simulator, many at a time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tailorbird.control.clock import Clock, RealClock, SimClock
from tailorbird.control.config import LoopConfig
from tailorbird.control.reuse import Reuse
from tailorbird.control.runtime import Trace, drive
from tailorbird.control.safety import Guard, Limits
from tailorbird.control.thinkers import Background, Synchronous, Thinker
from tailorbird.data.video import encode
from tailorbird.errors import ConfigError
from tailorbird.evals.config import Condition, RolloutConfig
from tailorbird.evals.results import Episode
from tailorbird.infer.policy import Policy, load_policy
from tailorbird.progress import track
from tailorbird.robots.metaworld import LIMITS
from tailorbird.sim.expert import ScriptedExpert
from tailorbird.sim.metaworld import MetaWorld, open_simulator
from tailorbird.sim.pool import run_in_order
from tailorbird.sim.ray_pool import run_on_ray
from tailorbird.sim.tasks import INSTRUCTIONS
from tailorbird.wire import ActionChunk, Observation


class SimRobot:
    """A Meta-World task as the control loop sees a robot, on request shown black pictures or a wrong task."""

    def __init__(self, env: MetaWorld, *, instruction: str, blind: bool = False, film_size: int = 0) -> None:
        self.env, self.instruction, self.blind, self.film_size = env, instruction, blind, film_size
        self.film: list[NDArray[np.uint8]] = []
        self.expert_actions: list[list[float]] = []
        self._expert = ScriptedExpert(env.task)

    @property
    def limits(self) -> Limits:
        return LIMITS

    def observe(self) -> Observation:
        seen = replace(self.env.observe(), task=self.instruction)
        if self.blind:
            seen = replace(seen, images={name: np.zeros_like(image) for name, image in seen.images.items()})
        return seen

    def act(self, action: NDArray[np.float32]) -> bool:
        if self.film_size:
            self.film.append(self.env.photograph(self.film_size, fast=False))
            self.expert_actions.append(self._expert.act(self.env).tolist())
        solved = self.env.advance(action)
        if solved and self.film_size:
            self.film.append(self.env.photograph(self.film_size, fast=False))
        return solved


@dataclass(frozen=True)
class Job:
    policy: Path
    task: str
    seed: int
    condition: Condition
    film: bool
    cfg: RolloutConfig


def open_policy(path: Path, cfg: RolloutConfig) -> Policy:
    """On the CPU, where the same seed gives the same episode.

    Raises:
        CheckpointError: the policy cannot be loaded.
        ConfigError: it acts at another rate, or wants cameras that the simulator does not show.
    """
    policy = load_policy(
        path,
        device="cpu",
        dtype=cfg.dtype,
        engine=cfg.engine,
        rename=cfg.rename,
        without=cfg.without,
        stats=cfg.stats,
    )
    check(policy, cfg)
    return policy


_held: dict[str, Policy] = {}


def _policy(path: Path, cfg: RolloutConfig) -> Policy:
    """The policy that this worker process holds between its episodes."""
    key = repr((path, cfg))
    if key not in _held:
        torch.set_num_threads(1)
        _held.clear()
        _held[key] = open_policy(path, cfg)
    return _held[key]


def shuffled_instruction(task: str, tasks: Sequence[str]) -> str:
    """The instruction of the next task in the list: the same wrong one for every seed."""
    others = [*tasks, *INSTRUCTIONS]
    return INSTRUCTIONS[next(name for name in others[others.index(task) + 1 :] if name != task)]


def play(job: Job) -> Episode:
    """One episode. Repeatable: the seed fixes the scene and the policy's noises, and time is simulated."""
    robot, trace = act_out(job)
    return Episode(
        task=job.task,
        seed=job.seed,
        solved=trace.solved,
        ticks=trace.ticks,
        held=trace.held,
        chunk_ms=trace.chunk_ms,
        film=encode(robot.film, job.cfg.sim.control_hz, crf=23) if job.film else None,
        actions=[action.tolist() for action in trace.actions] if job.film else None,
        expert_actions=robot.expert_actions if job.film else None,
    )


def act_out(job: Job) -> tuple[SimRobot, Trace]:
    cfg, env = job.cfg, open_simulator(job.task, job.cfg.sim)
    policy = _policy(job.policy, cfg)
    env.restart(job.seed)
    policy.reset(job.seed)
    wrong = job.condition == "shuffled"
    robot = SimRobot(
        env,
        instruction=shuffled_instruction(job.task, cfg.tasks) if wrong else INSTRUCTIONS[job.task],
        blind=job.condition == "black",
        film_size=cfg.film_size if job.film else 0,
    )
    clock, loop = SimClock(), _loop(cfg)
    # nothing can break here: a policy far beyond the limits is clipped to them, as in published evaluations
    guard = Guard(LIMITS, loop.hz, clamped_chunks=loop.max_ticks)
    return robot, drive(robot, slowed(policy, clock, cfg), clock, loop, guard=guard)


def slowed(policy: Policy, clock: Clock, cfg: RolloutConfig) -> Thinker[ActionChunk]:
    """The policy as if its chunks took `delay_s`; of a scene that is reused, only the expert's share."""
    if cfg.mode != "reuse":
        return Synchronous(policy.act, clock, cfg.delay_s)
    acting_s = cfg.expert_share * cfg.delay_s
    reuse = Reuse(policy, Synchronous(policy.look, clock, cfg.delay_s - acting_s))
    return Synchronous(reuse, clock, acting_s)


def _loop(cfg: RolloutConfig) -> LoopConfig:
    hz = cfg.sim.control_hz
    return LoopConfig(
        hz=hz, execute=cfg.execute, max_ticks=int(cfg.max_s * hz), mode=cfg.mode, errors="raise", halt=False
    )


@dataclass(frozen=True, kw_only=True)
class Run:
    """A policy in all the situations of `cfg`."""

    policy: Path
    cfg: RolloutConfig
    condition: Condition = "normal"

    def jobs(self) -> list[Job]:
        cfg, seeds = self.cfg, range(self.cfg.first_seed, self.cfg.first_seed + self.cfg.seeds)
        return [
            Job(self.policy, task, seed, self.condition, cfg.film and seed == cfg.first_seed, cfg)
            for task in cfg.tasks
            for seed in seeds
        ]


def rollouts(
    runs: Mapping[str, Run], workers: int, ray: str | None = None
) -> Iterator[tuple[str, list[Episode]]]:
    """Play run after run in the same processes; yield each run's name and episodes as it ends.

    ray: address of a cluster, whose processes play then (sim/ray_pool.py); the episodes are the same.

    Raises:
        CheckpointError: a policy cannot be loaded.
        ConfigError: a policy acts at another rate, or wants cameras that the simulator does not show.
    """
    for run in runs.values():
        open_policy(run.policy, run.cfg)
    jobs = [job for run in runs.values() for job in run.jobs()]
    results = run_in_order(play, jobs, workers) if ray is None else run_on_ray(play, jobs, workers, ray)
    for name, run in runs.items():
        total, episodes = len(run.jobs()), []
        with track(f"rollouts, {name}", total) as bar:
            for _, episode in islice(results, total):
                episodes.append(episode)
                bar.advance(note=f"{sum(e.solved for e in episodes)} solved")
        yield name, episodes


def check(policy: Policy, cfg: RolloutConfig) -> None:
    pipeline = policy.pipeline
    if set(pipeline.robot_cameras) - {cfg.sim.camera}:
        raise ConfigError(
            f"the policy looks through {pipeline.robot_cameras}, the simulator shows {cfg.sim.camera!r}: "
            f"say which it is with --rename {cfg.sim.camera} POLICYS, which is absent with --without POLICYS"
        )
    if pipeline.hz is not None and pipeline.hz != cfg.sim.control_hz:
        raise ConfigError(
            f"the policy learned {pipeline.hz:g} actions a second, the simulator takes {cfg.sim.control_hz}: "
            f"set --sim.control-hz {pipeline.hz:g}"
        )
    if cfg.execute > policy.model.cfg.chunk:
        raise ConfigError(
            f"the policy's chunks have {policy.model.cfg.chunk} actions, not {cfg.execute}: lower --execute"
        )


def drive_in_real_time(policy: Path, cfg: RolloutConfig) -> Trace:
    """One episode by the wall clock, chunks computed in the background: the rate that a robot would get.

    The first task is played for `max_s` whether it is solved or not.
    """
    mind = open_policy(policy, cfg)
    torch.set_num_threads(1)
    env = MetaWorld(cfg.tasks[0], cfg.sim)
    env.restart(cfg.first_seed)
    robot = _Unstoppable(env, instruction=INSTRUCTIONS[cfg.tasks[0]])
    mind.act(robot.observe())  # the first call pays for setting up
    thinker = Background(mind)
    try:
        return drive(robot, thinker, RealClock(), _loop(cfg))
    finally:
        thinker.close()
        env.close()


class _Unstoppable(SimRobot):
    def act(self, action: NDArray[np.float32]) -> bool:
        super().act(action)
        return False
