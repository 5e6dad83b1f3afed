"""Jobs as tasks of Ray: the simulators of a whole cluster, results in the order of the jobs."""

import itertools
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from tailorbird.errors import ConfigError, SimulatorError

Job = TypeVar("Job")
Result = TypeVar("Result")
REACHED_S = 5.0


@contextmanager
def ray_cluster(address: str, cores: int) -> Iterator[Any]:
    """The module `ray`, connected; a connection that is there already is used, and left.

    Args:
        address: "local" starts a cluster on this machine, which ends with the block; else that of a running
            one: "auto", HOST:PORT or ray://HOST:PORT.
        cores: of a local cluster.
    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports home otherwise
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # its ports execute what they are sent
    try:
        import ray
    except ImportError as error:
        raise ConfigError("Ray is not installed: try pip install 'tailorbird[ray]'") from error
    if ray.is_initialized():
        yield ray
        return
    try:
        if ":" in address:  # Ray itself tries for a minute and a half, and then ends the process
            host, port = address.removeprefix("ray://").rsplit(":", 1)
            socket.create_connection((host, int(port)), timeout=REACHED_S).close()
        if address == "local":
            ray.init("local", num_cpus=cores, include_dashboard=False, log_to_driver=False)
        else:
            ray.init(address, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"there is no Ray cluster at {address!r}: start one with `ray start --head`, or say local"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def run_on_ray(
    work: Callable[[Job], Result], jobs: Iterable[Job], workers: int, address: str
) -> Iterator[tuple[Job, Result]]:
    """`tailorbird.sim.pool.run_in_order` on the cores of a cluster, whose machines see the same files.

    `workers` is for a local cluster; another has as many as it has cores. A job whose process or machine dies
    is run again, three times at most, and so is to be repeatable.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
        SimulatorError: a job's process died again and again, or the cluster is gone.
    """
    if workers < 1:
        raise ConfigError(f"{workers=} must be at least 1")
    with ray_cluster(address, workers) as ray:
        task = ray.remote(num_cpus=1, max_retries=3)(_call)
        ahead = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        waiting: deque[tuple[Job, Any]] = deque()
        todo = iter(jobs)
        try:
            while True:
                for job in itertools.islice(todo, ahead - len(waiting)):
                    waiting.append((job, task.remote(work, job)))
                if not waiting:
                    return
                job, answer = waiting.popleft()
                yield job, _result(ray, answer)
        finally:
            for _, answer in waiting:
                ray.cancel(answer, force=True)


def _call(work: Callable[[Job], Result], job: Job) -> Result:
    return work(job)


def _result(ray: Any, answer: Any) -> Any:
    """What a job returned, or its own error."""
    try:
        return ray.get(answer)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise SimulatorError(
            f"Ray lost a simulator ({type(error).__name__}); when memory is short, try fewer --workers"
        ) from error
