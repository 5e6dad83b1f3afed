"""Copies of a policy in processes of Ray Serve, on this machine or on many; all of serving that knows Ray.

Ray never meets a robot: what robots send is read and checked by the server's own front, and goes to a copy
by its handle. Each copy is a deployment of its own, so that a robot's pictures stay where they were read.
"""

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tailorbird.errors import ConfigError
from tailorbird.infer.policy import Policy
from tailorbird.infer.session import Session
from tailorbird.serve.about import about
from tailorbird.serve.answer import Answers
from tailorbird.serve.batcher import Job, Refusal
from tailorbird.sim.ray_pool import ray_cluster
from tailorbird.wire import ActionChunk, Observation

log = logging.getLogger(__name__)
AWAY = Refusal("away", "no copy of the policy is there: ask again soon")
AGAIN_S = 1.0  # between questions to a copy that was lost
KEPT = 1024  # robots whose pictures a copy remembers
Outcomes = list[ActionChunk | Refusal]


class Replica:
    """A copy: what runs in Ray's process. `who` names a robot and its episode."""

    def __init__(self, load: Callable[[], Policy]) -> None:
        self._policy = load()
        seen = about(self._policy)
        self._policy.act_batch([seen.made_up()], torch.zeros(1, seen.chunk, seen.model_width))  # warms it up
        self._answers, self._one = Answers(self._policy), threading.Lock()
        self._sessions: OrderedDict[str, tuple[int, Session]] = OrderedDict()

    def process(self) -> int:
        """Its id; and a sign of life, also while it thinks: Ray Serve has a thread for each call."""
        return os.getpid()

    def think(
        self, seen: Sequence[Observation], who: Sequence[tuple[str, int]], noise: NDArray[np.float32]
    ) -> Outcomes:
        with self._one:  # a lost copy's robots may come at the same time
            sessions = [self._session(name, episode) for name, episode in who]
            return self._answers(seen, sessions, torch.from_numpy(noise.copy()))

    def _session(self, name: str, episode: int) -> Session:
        """Only for what a robot's cameras saw: its noise comes along with each call."""
        at, session = self._sessions.pop(name, (episode, None))
        if session is None or at != episode:
            session = self._policy.new_session(self._policy.session.views.max_age_s)
        self._sessions[name] = episode, session
        if len(self._sessions) > KEPT:
            self._sessions.popitem(last=False)
        return session


class Replicas:
    """The front's side. `computes` has one function for each copy, to be called in a thread for each."""

    def __init__(
        self, handles: Sequence[Any], lost: tuple[type[BaseException], ...], timeout_s: float
    ) -> None:
        """lost: what Ray raises for a copy that is not there. timeout_s: for a sign of life."""
        self._handles, self._timeout_s = handles, timeout_s
        self._lost: tuple[type[BaseException], ...] = (*lost, TimeoutError)
        self.up = set(range(len(handles)))
        self.computes = [partial(self._compute, number) for number in range(len(handles))]
        self.tell: Callable[[int, bool], object] = lambda *_: None

    def process(self, number: int) -> int:
        """The process of a copy. Waits until there is one. Raises TimeoutError, or an error of Ray."""
        return int(self._handles[number].process.remote().result(timeout_s=self._timeout_s))

    def _compute(self, number: int, jobs: Sequence[Job], noise: Tensor) -> Outcomes:
        """By the robots' own copy; if that is lost, by another, with the same answers."""
        seen = [job.seen for job in jobs]
        who = [(job.robot.name, job.generation) for job in jobs]
        for one in (number, *(self.up - {number})):
            if one in self.up:
                try:
                    return self._patiently(one, self._handles[one].think.remote(seen, who, noise.numpy()))
                except self._lost:
                    self._lose(one)
        return [AWAY] * len(jobs)

    def _patiently(self, number: int, call: Any) -> Outcomes:
        """What a call returns. It may take as long as it likes, while its copy gives signs of life.

        Raises:
            TimeoutError: it gives none. An error of Ray: it is not there.
        """
        while True:
            try:
                return list(call.result(timeout_s=self._timeout_s))
            except TimeoutError:
                self.process(number)

    def _lose(self, number: int) -> None:
        """Leave a copy until it answers again; Ray starts it anew."""
        try:
            self.up.remove(number)
        except KeyError:  # another call noticed it before
            return
        log.warning("copy %d of the policy is lost: the others take its robots", number)
        self.tell(number, False)

        def wait() -> None:
            pause = threading.Event()
            while not self._answers(number):
                pause.wait(AGAIN_S)
            self.up.add(number)
            self.tell(number, True)
            log.warning("copy %d of the policy is back", number)

        threading.Thread(target=wait, daemon=True).start()

    def _answers(self, number: int) -> bool:
        with suppress(*self._lost):
            self.process(number)
            return True
        return False


@contextmanager
def replicas(
    load: Callable[[], Policy], num: int, *, address: str = "local", timeout_s: float = 5.0
) -> Iterator[Replicas]:
    """Start copies of a policy, each with a core of its own, and end them with the block.

    Args:
        load: imported by name in Ray's processes, which see the same files.
        address: of the cluster: see `ray_cluster`.
        timeout_s: a copy that gives no sign of life for so long counts as lost; an answer may take longer.
    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
    """
    if num < 1:
        raise ConfigError(f"{num} copies of the policy can answer nobody: set --replicas to 1 or more")
    with ray_cluster(address, num + 1) as ray:  # Ray Serve's own process wants a share of a core, too
        from ray import serve

        serve.start(proxy_location="Disabled")  # no door but the front's
        calls = 2 + num  # its own front's, a sign of life, and those of lost copies
        settings = {"max_ongoing_requests": calls, "ray_actor_options": {"num_cpus": 1}}
        deployment = serve.deployment(**settings)(Replica)
        names = [f"tailorbird-{number}" for number in range(num)]
        copies = [
            serve.RunTarget(deployment.options(name=name).bind(load), name=name, route_prefix=None)
            for name in names
        ]
        try:
            lost = ray.exceptions.RayError, serve.exceptions.RayServeException
            yield Replicas(serve.run_many(copies), lost, timeout_s)
        finally:
            for name in names:
                serve.delete(name, _blocking=False)
