"""Who waits for the model, and who goes next.

Everything here runs on the event loop; only `compute` runs elsewhere, in the one thread that owns the model.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import torch
from torch import Tensor

from tailorbird.infer.session import Session
from tailorbird.serve.limits import Rate
from tailorbird.serve.metrics import Metrics
from tailorbird.wire import ActionChunk, Observation

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refusal:
    """Why there is no chunk: a code for programs and a short message for people, without insides."""

    code: str
    message: str


@dataclass(frozen=True)
class Answer:
    chunk: ActionChunk
    queue_ms: float
    model_ms: float


class Robot:
    """Who is at the other end of a connection.

    name: tells a connection from every other.
    generation: number of the episode, as the robot counts them. seq: of its newest observation.
    session: of this episode alone: what a call of an old one still writes is read by nobody.
    """

    def __init__(self, new_session: Callable[[], Session]) -> None:
        self.name = secrets.token_hex(8)
        self.generation = -1  # so that whatever number a robot's first episode has is a new one
        self.seq = 0
        self.session, self._new_session = new_session(), new_session

    def begin(self, seed: int, generation: int | None = None) -> None:
        """An episode: the next one, or the one that the robot says."""
        self.generation = self.generation + 1 if generation is None else generation
        self.session = self._new_session()
        self.session.reset(seed)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One observation on its way, with the episode that it was sent in.

    Times are of `time.monotonic`; `deliver` is called once, on the loop.
    """

    robot: Robot
    session: Session
    generation: int
    seen: Observation
    came_s: float
    due_s: float
    deliver: Callable[[Answer | Refusal], None]


Compute = Callable[[Sequence[Job], Tensor], list[ActionChunk | Refusal]]
SUPERSEDED = Refusal("superseded", "a newer observation took its place")
LATE = Refusal("late", "its deadline passed before its turn came")
OLD_EPISODE = Refusal("old-episode", "a new episode has begun since")
ENDING = Refusal("ending", "the server is shutting down: connect again later")
INTERNAL = Refusal("internal", "the policy failed on this observation; the server's log says why")


class Batcher:
    """One slot a robot, the newest observation in it; all that wait when the model is free go together.

    A newer observation keeps the place in the queue of the one that it replaces: asking often neither
    costs a robot its turn nor gives it one.
    """

    def __init__(self, compute: Compute, worker: Executor, metrics: Metrics, max_batch: int) -> None:
        """worker: where `compute` is called, once at a time."""
        self._compute, self._max_batch, self._metrics, self._worker = compute, max_batch, metrics, worker
        self._waiting: dict[Robot, Job] = {}
        self._traces = Rate(1.0)
        self._wake = asyncio.Event()
        self._running = False
        self._ending = False

    def submit(self, job: Job) -> None:
        if self._ending:
            self._drop(job, ENDING)
            return
        if (old := self._waiting.get(job.robot)) is not None:
            self._drop(old, SUPERSEDED)
        self._waiting[job.robot] = job
        self._wake.set()

    def forget(self, robot: Robot, why: Refusal) -> None:
        """Nobody wants what this robot has waiting."""
        if (job := self._waiting.pop(robot, None)) is not None:
            self._drop(job, why)

    def give_up(self) -> list[Job]:
        """What waits, for another to take."""
        jobs = [*self._waiting.values()]
        self._waiting.clear()
        return jobs

    async def drain(self, grace_s: float) -> bool:
        """Take nothing new, and finish what is there. False when the time did not suffice."""
        self._ending = True
        until = time.monotonic() + grace_s
        while (self._running or self._waiting) and time.monotonic() < until:
            await asyncio.sleep(0.005)
        for robot in [*self._waiting]:
            self.forget(robot, ENDING)
        return not self._running

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            if not (jobs := self._next()):
                self._wake.clear()
                continue
            self._running = True
            began = time.monotonic()
            try:
                noise = torch.cat([job.session.noise() for job in jobs])  # (B, L, action_dim)
                found = await loop.run_in_executor(self._worker, self._compute, jobs, noise)
            except Exception:  # whatever it is, other robots wait for their turn
                self._trace("a batch failed")
                found = [INTERNAL] * len(jobs)
            finally:
                self._running = False
            self._hand_out(jobs, found, began)

    def _next(self) -> list[Job]:
        """The oldest waiting, without those that came too late."""
        taken: list[Job] = []
        now = time.monotonic()
        for robot in [*self._waiting]:
            if len(taken) == self._max_batch:
                break
            job = self._waiting.pop(robot)
            if now > job.due_s:
                self._drop(job, LATE)
            else:
                taken.append(job)
        return taken

    def _hand_out(self, jobs: list[Job], found: list[ActionChunk | Refusal], began: float) -> None:
        now = time.monotonic()
        model_s = now - began
        self._metrics.model_s.observe(model_s)
        self._metrics.batch.observe(len(jobs))
        for job, one in zip(jobs, found, strict=True):
            if job.session is not job.robot.session:
                self._drop(job, OLD_EPISODE)
            elif isinstance(one, Refusal):
                self._drop(job, one)
            else:
                self._metrics.queue_s.observe(began - job.came_s)
                self._metrics.total_s.observe(now - job.came_s)
                self._deliver(job, Answer(one, 1e3 * (began - job.came_s), 1e3 * model_s))

    def _drop(self, job: Job, why: Refusal) -> None:
        self._metrics.dropped.labels(why.code).inc()
        self._deliver(job, why)

    def _deliver(self, job: Job, outcome: Answer | Refusal) -> None:
        try:
            job.deliver(outcome)
        except Exception:
            self._trace("an answer could not be delivered")

    def _trace(self, what: str) -> None:
        if self._traces.admit():
            log.exception(what)
