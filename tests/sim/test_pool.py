"""Work in parallel processes, results in the order of the jobs."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tailorbird.errors import ConfigError, DataError, SimulatorError
from tailorbird.sim.pool import run_in_order


def slow_at_first(job: int) -> tuple[int, int]:
    time.sleep(0.2 if job % 4 == 0 else 0.0)
    return job * job, os.getpid()


def meet(job: int, here: str) -> int:
    """Two of these end only if they run at the same time."""
    Path(here, str(job)).touch()
    while len(list(Path(here).iterdir())) < 2:
        time.sleep(0.01)
    return os.getpid()


def die(job: int) -> int:
    if job == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return job


def fail(job: int) -> int:
    if job == 3:
        raise DataError("job three is impossible")
    return job


def reaction_to_ctrl_c(job: int) -> bool:
    return signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_results_come_in_the_order_of_the_jobs() -> None:
    done = list(run_in_order(slow_at_first, range(9), workers=2))
    assert [(job, square) for job, (square, _) in done] == [(n, n * n) for n in range(9)]


def test_jobs_run_side_by_side_in_processes_of_their_own(tmp_path: Path) -> None:
    pids = {pid for _, pid in run_in_order(partial(meet, here=str(tmp_path)), range(2), workers=2)}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_no_workers_at_all_are_refused() -> None:
    with pytest.raises(ConfigError, match="workers=0 must be at least 1"):
        list(run_in_order(die, range(2), workers=0))


def test_jobs_are_taken_lazily_so_that_results_can_end_them() -> None:
    taken: list[int] = []
    enough = False

    def jobs() -> Iterator[int]:
        for number in itertools.count():
            if enough:
                return
            taken.append(number)
            yield number

    results = run_in_order(slow_at_first, jobs(), workers=2)
    assert taken == []
    next(results)
    assert taken == [0, 1, 2, 3]
    enough = True
    assert [job for job, _ in results] == [1, 2, 3]


def test_leaving_early_ends_the_processes() -> None:
    results = run_in_order(slow_at_first, itertools.count(), workers=2)
    _, (_, pid) = next(results)
    assert alive(pid)
    results.close()
    assert not alive(pid)
    assert multiprocessing.active_children() == []


def test_a_process_killed_from_outside_is_an_error_that_says_what_to_try() -> None:
    with pytest.raises(SimulatorError, match=r"died without a word; .* fewer --workers"):
        list(run_in_order(die, range(9), workers=1))


def test_an_error_in_a_job_arrives_as_itself_after_the_results_before_it() -> None:
    seen = []
    with pytest.raises(DataError, match="job three is impossible"):  # noqa: PT012
        for job, _ in run_in_order(fail, range(9), workers=1):
            seen.append(job)
    assert seen == [0, 1, 2]


def test_ctrl_c_is_left_to_the_parent() -> None:
    assert [ignored for _, ignored in run_in_order(reaction_to_ctrl_c, [1], workers=1)] == [True]


PARENT = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from tailorbird.sim.pool import run_in_order
from test_pool import slow_at_first
if __name__ == "__main__":
    jobs = iter(int, 1)  # zeros without end
    for _, (_, pid) in run_in_order(slow_at_first, jobs, workers=2):
        print(pid, flush=True)
"""


def test_no_worker_outlives_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, script, Path(__file__).parent], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pids: set[int] = set()
    while len(pids) < 2:
        pids.add(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(alive, pids))
