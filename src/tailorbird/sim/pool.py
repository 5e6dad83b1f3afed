"""Many simulators side by side, one process each: off-screen OpenGL does not share a process gladly."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tailorbird.errors import ConfigError, SimulatorError

Job = TypeVar("Job")
Result = TypeVar("Result")


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and do not outlive it even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_in_order(
    work: Callable[[Job], Result], jobs: Iterable[Job], workers: int
) -> Iterator[tuple[Job, Result]]:
    """Run jobs in parallel processes and yield (job, result) in the order of the jobs.

    `jobs` is consumed lazily, a few ahead of the results, so it may stop by what the results so far were.
    `work` is a top-level function: each process imports it anew.

    Raises:
        SimulatorError: a process was killed from outside, most often for want of memory.
    """
    if workers < 1:
        raise ConfigError(f"{workers=} must be at least 1")
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    waiting: deque[tuple[Job, Future[Result]]] = deque()
    todo = iter(jobs)
    try:
        while True:
            while len(waiting) < 2 * workers and (job := next(todo, None)) is not None:
                waiting.append((job, pool.submit(work, job)))
            if not waiting:
                return
            job, future = waiting.popleft()
            yield job, future.result()
    except BrokenProcessPool as error:
        raise SimulatorError(
            "a simulator process died without a word; when memory is short, try fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
