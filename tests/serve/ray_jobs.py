"""What processes of Ray do in tests. They import this file, so it is quick to import."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from tailorbird.errors import DataError


def square(job: int) -> tuple[int, int]:
    return job * job, os.getpid()


def fail(job: int) -> int:
    if job == 3:
        raise DataError("job three is impossible")
    return job


def die_once(job: int, here: str) -> int:
    mark = Path(here, str(job))
    if job == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return job


def die(job: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return job


def slow_policy(folder: Path, call_s: float) -> Any:
    """A policy whose calls take so long."""
    from tailorbird.infer.policy import load_policy

    policy = load_policy(folder, device="cpu")
    act_batch = policy.act_batch

    def slow(*given: Any) -> Any:
        time.sleep(call_s)
        return act_batch(*given)

    policy.act_batch = slow  # type: ignore[method-assign]
    return policy
