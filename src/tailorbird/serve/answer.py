"""One call of a policy for several robots, of which one's trouble is not another's, and the thread for it."""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any, TypeVar

from torch import Tensor

from tailorbird.errors import ConfigError, DataError
from tailorbird.infer.policy import Policy
from tailorbird.infer.session import Session
from tailorbird.serve.batcher import INTERNAL, Refusal
from tailorbird.serve.limits import MAX_WORDS, Rate
from tailorbird.wire import ActionChunk, Observation

T = TypeVar("T")
log = logging.getLogger(__name__)
TRACES_HZ = 0.1  # written to the log at most: a robot that asks again and again shall not fill the disk


class Answers:
    """A policy's, to whoever asks."""

    def __init__(self, policy: Policy) -> None:
        self._policy, self._traces = policy, Rate(TRACES_HZ)

    def __call__(
        self, seen: Sequence[Observation], sessions: Sequence[Session], noise: Tensor
    ) -> list[ActionChunk | Refusal]:
        """A chunk for each, from (B, L, action_dim) noise.

        An observation that cannot be used costs the others time, not answers.
        """
        try:
            return list(self._policy.act_batch(seen, noise, sessions))
        except Exception as error:
            if len(seen) == 1:
                return [self._refusal(error)]
        half = len(seen) // 2
        return [
            *self(seen[:half], sessions[:half], noise[:half]),
            *self(seen[half:], sessions[half:], noise[half:]),
        ]

    def _refusal(self, error: Exception) -> Refusal:
        """What is the robot's own doing is told in words; of the rest, the log knows more."""
        if isinstance(error, DataError):
            return Refusal("bad-observation", str(error)[:MAX_WORDS])
        if isinstance(error, ConfigError):  # it asks for what this engine cannot do
            return Refusal("bad-request", str(error)[:MAX_WORDS])
        if self._traces.admit():
            log.error("the policy failed", exc_info=error)
        return INTERNAL


class Worker(Executor):
    """One thread that does one thing after the other, and for whose end no process waits.

    For that of a pool of Python's own it would: a model that hangs would keep a server from ending.
    """

    def __init__(self) -> None:
        self._todo: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        threading.Thread(target=self._run, name="policy", daemon=True).start()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        done: Future[T] = Future()

        def call() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                done.set_result(fn(*args, **kwargs))
            except BaseException as error:
                done.set_exception(error)

        self._todo.put(call)
        return done

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:
        """Once what was submitted is done, the thread ends. Nobody waits for that."""
        self._todo.put(None)

    def _run(self) -> None:
        while (call := self._todo.get()) is not None:
            call()
            del call  # what it holds, pictures among them, is not wanted until the next comes
