"""Ways to get an answer to an observation: while everything waits, in a thread, or in another process."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from multiprocessing.connection import Connection
from typing import Generic, Protocol, TypeVar

from tailorbird.control.clock import Clock
from tailorbird.errors import ConnectionLost, TailorbirdError
from tailorbird.wire import ActionChunk, Observation

Think = Callable[[Observation], ActionChunk]
Answer = TypeVar("Answer")
Given_co = TypeVar("Given_co", covariant=True)
CLOSE_S = 5.0


class Thinker(Protocol[Given_co]):
    """Has at most one answer in the making."""

    @property
    def busy(self) -> bool: ...

    def start(self, seen: Observation) -> None: ...

    def poll(self) -> Given_co | None:
        """The answer if it is ready. It is handed out once; what was raised in making it is raised here."""

    def wait(self, timeout_s: float | None = None) -> Given_co:
        """The answer, however long it takes.

        Raises ConnectionLost when it takes longer than `timeout_s` of real time; it may still come.
        """


def drop_answer(thinker: Thinker[object], timeout_s: float | None = None) -> None:
    """End what a thinker is at. What comes of it, an error too, concerns nobody any more.

    Raises:
        ConnectionLost: it does not end in time.
    """
    if not thinker.busy:
        return
    try:
        thinker.wait(timeout_s)
    except Exception:
        if thinker.busy:
            raise


class Synchronous(Generic[Answer]):
    """Thinks while everything waits, or as if it took `delay_s` of the clock's time: exact and repeatable."""

    def __init__(self, think: Callable[[Observation], Answer], clock: Clock, delay_s: float = 0.0) -> None:
        self._think, self._clock, self._delay_s = think, clock, delay_s
        self._answer: list[Answer] = []
        self._ready_s = 0.0

    @property
    def busy(self) -> bool:
        return bool(self._answer)

    def start(self, seen: Observation) -> None:
        self._answer, self._ready_s = [self._think(seen)], self._clock.now() + self._delay_s

    def poll(self) -> Answer | None:
        return self._answer.pop() if self._answer and self._clock.now() >= self._ready_s else None

    def wait(self, timeout_s: float | None = None) -> Answer:
        self._clock.sleep_until(self._ready_s)
        return self._answer.pop()


class Background(Generic[Answer]):
    """Thinks in a thread of its own while the robot goes on with what it has."""

    def __init__(self, think: Callable[[Observation], Answer]) -> None:
        self._think = think
        self._pool = ThreadPoolExecutor(1)
        self._future: Future[Answer] | None = None

    @property
    def busy(self) -> bool:
        return self._future is not None

    def start(self, seen: Observation) -> None:
        assert self._future is None, "one answer at a time"
        self._future = self._pool.submit(self._think, seen)

    def poll(self) -> Answer | None:
        return self.wait() if self._future is not None and self._future.done() else None

    def wait(self, timeout_s: float | None = None) -> Answer:
        assert self._future is not None
        future = self._future
        if not wait([future], timeout_s).done:
            raise ConnectionLost(f"the policy has not answered for {timeout_s:g} s: is it stuck?")
        self._future = None
        return future.result()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class Elsewhere:
    """Thinks in a process of its own, which gives way to this one where cores are short.

    The loop then shares neither Python's lock nor, as far as the system can help it, a core with the policy.
    A thread talks to the process, so that not even one that was stopped keeps the loop waiting.
    """

    def __init__(self, make: Callable[[], Think], nice: int = 10) -> None:
        """make: a function that can be pickled; it is called in the new process, which imports anew.

        Raises:
            TailorbirdError: `make` failed there.
        """
        self._pipe, there = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_serve, args=(there, make, nice), daemon=True)
        self._process.start()
        there.close()
        self._talk = Background(self._ask)
        try:
            self._receive()
        except Exception:
            self.close()
            raise

    @property
    def busy(self) -> bool:
        return self._talk.busy

    def start(self, seen: Observation) -> None:
        self._talk.start(seen)

    def poll(self) -> ActionChunk | None:
        return self._talk.poll()

    def wait(self, timeout_s: float | None = None) -> ActionChunk:
        return self._talk.wait(timeout_s)

    def reset(self, seed: int = 0, timeout_s: float | None = None) -> None:
        """Begin an episode there, if what thinks has episodes. What is in the making is thrown away.

        Raises:
            ConnectionLost: what is in the making does not end in time, or the process has died.
        """
        drop_answer(self, timeout_s)
        self._exchange(seed)

    def close(self) -> None:
        self._process.terminate()
        self._process.join(CLOSE_S)
        self._process.kill()  # one that was stopped does not hear the other
        self._process.join()
        self._talk.close()
        self._pipe.close()

    def _ask(self, seen: Observation) -> ActionChunk:
        answer = self._exchange(seen)
        assert isinstance(answer, ActionChunk)
        return answer

    def _exchange(self, value: Observation | int) -> object:
        try:
            self._pipe.send(value)
        except OSError:
            raise _died() from None
        return self._receive()

    def _receive(self) -> object:
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError):
            raise _died() from None
        if isinstance(answer, TailorbirdError):
            raise answer
        return answer


def _died() -> ConnectionLost:
    return ConnectionLost(
        "the policy's process died without a word; when memory is short, take a smaller one"
    )


def _serve(pipe: Connection, make: Callable[[], Think], nice: int) -> None:
    """Observations in, chunks out; a number begins an episode with that seed."""
    os.nice(nice)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what Ctrl-C means is for the loop to say
    try:
        think = make()
    except Exception as error:
        pipe.send(_portable(error))
        return
    pipe.send(None)
    while True:
        try:
            asked = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            if isinstance(asked, Observation):
                pipe.send(think(asked))
            else:
                if (reset := getattr(think, "reset", None)) is not None:
                    reset(asked)
                pipe.send(None)
        except Exception as error:
            pipe.send(_portable(error))


def _portable(error: Exception) -> TailorbirdError:
    """Ours as they are, others by what they say: not every error can be pickled."""
    if isinstance(error, TailorbirdError):
        return error
    return TailorbirdError(f"the policy failed: {type(error).__name__}: {error}")
