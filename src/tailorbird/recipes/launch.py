"""Start one command as several processes that learn together: here, or as a job of Slurm.

Every command that trains can be started so. It saves when it is told to stop, and the same command goes on
from there: so a job whose time is up goes back to the queue, to run the same again.
"""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from tailorbird.errors import ConfigError, Interrupted, TailorbirdError
from tailorbird.provenance import cores

TRAINS = ("train", "finetune")


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """A job, in which one process runs for each GPU.

    Attributes:
        nodes: machines.
        gpus: of each machine. 0: one process on each, without a GPU.
        cpus: cores of each process: --rows.workers and two more.
        memory_gb: of each machine; 0 is what the cluster gives.
        hours: until the job is stopped. It goes on in a new one.
        again: so often at most, for want of time. Being pushed aside by others does not count.
        notice_s: seconds before its end at which the job is told to save.
        partition: "" for the cluster's own choice; so with account and qos.
        logs: folder for the job's script and for what its processes say. The machines must share it.
    """

    nodes: int = 1
    gpus: int = 1
    cpus: int = 8
    memory_gb: int = 0
    hours: float = 24.0
    again: int = 30
    notice_s: int = 300
    partition: str = ""
    account: str = ""
    qos: str = ""
    name: str = "tailorbird"
    logs: Path = Path("runs/slurm")

    def __post_init__(self) -> None:
        if min(self.nodes, self.cpus) < 1 or min(self.gpus, self.memory_gb, self.again) < 0:
            raise ConfigError(f"nodes and cpus are at least 1, gpus, memory_gb, again not negative: {self}")
        if not 0 < self.notice_s < 1800 * self.hours:
            raise ConfigError(f"{self.notice_s=} must be positive, and less than half of {self.hours=}")

    @property
    def parameters(self) -> dict[str, Any]:
        """As submitit takes them. srun does not inherit --cpus-per-task."""
        given: dict[str, Any] = {"partition": self.partition, "account": self.account, "qos": self.qos}
        given |= {"mem": f"{self.memory_gb}GB" if self.memory_gb else "", "gpus_per_node": self.gpus}
        return {name: value for name, value in given.items() if value} | {
            "job_name": self.name,
            "nodes": self.nodes,
            "ntasks_per_node": max(1, self.gpus),
            "cpus_per_task": self.cpus,
            "time": round(60 * self.hours),
            "signal_delay_s": self.notice_s,
            "srun_args": [f"--cpus-per-task={self.cpus}"],
            "additional_parameters": {"requeue": True},
        }


def require_training(words: Sequence[str]) -> None:
    """Raises ConfigError for a command that several processes cannot share."""
    if not words or words[0] not in TRAINS:
        raise ConfigError(
            f"launch starts {' or '.join(TRAINS)}, not {words[0] if words else 'nothing'}: write "
            "`tailorbird launch --nproc 2 -- train ...`"
        )


def torchrun(words: Sequence[str], processes: int, restarts: int) -> list[str]:
    """The command line that runs a command of tailorbird as several processes here.

    restarts: so often all are started again after one of them has failed.
    """
    require_training(words)
    if processes < 1 or restarts < 0:
        raise ConfigError(f"{processes=} must be at least 1, {restarts=} not negative")
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    start += [f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
    return [*start, "-m", "tailorbird", *words]


def run_here(words: Sequence[str], processes: int, restarts: int) -> None:
    """Run a command of tailorbird as several processes here, to its end.

    Ctrl-C, SIGTERM and the end of the terminal are handed on to the processes, which save and end.

    Raises:
        Interrupted: it was stopped by Ctrl-C. TailorbirdError: a process failed.
    """
    command = torchrun(words, processes, restarts)
    env = {"OMP_NUM_THREADS": str(max(1, cores() // processes)), **os.environ}
    process = subprocess.Popen(command, env=env, start_new_session=True)  # Ctrl-C reaches us alone
    with _handed_on(process) as got:
        code = process.wait()
    if signal.SIGINT in got:
        raise Interrupted("stopped by Ctrl-C: the same command goes on from what was saved")
    if code:
        why = "was stopped too early to save" if got else "failed"
        raise TailorbirdError(
            f"one of {processes} processes {why}: what it said is above; the same command goes on from the "
            "newest checkpoint"
        )


@contextmanager
def _handed_on(process: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    """The signals that came. The first asks all processes to save, the second to end at once.

    They are told themselves: torchrun would kill them after half a minute, and call it a failure.
    """
    got: list[int] = []

    def hand_on(kind: int, _: FrameType | None) -> None:
        for pid in _children(process.pid) or [process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT if got else signal.SIGTERM)
        got.append(kind)

    kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {kind: signal.signal(kind, hand_on) for kind in kinds}
    try:
        yield got
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _children(pid: int) -> list[int]:
    """The processes that a process started; none where the system does not list them."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(one) for each in lists for one in each.read_text().split()]


class Job:
    """What each process of a cluster's job does: run a command of tailorbird, as one of a team.

    Before the job's time is up submitit calls `checkpoint` in the first process, and asks for the job anew.
    What submitit stores in its folder, and reads again, is this: words.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        self._process = subprocess.Popen([sys.executable, "-m", "tailorbird", *self.words])
        if code := self._process.wait():
            raise TailorbirdError(f"`tailorbird {shlex.join(self.words)}` ended with {code}")

    def checkpoint(self) -> Any:
        """Let the command save. Called in a signal's handler, while `__call__` has the lock of its `wait`."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._process.pid, signal.SIGTERM)
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Job(self.words))


def slurm_script(words: Sequence[str], cfg: SlurmConfig) -> str:
    """What would be submitted, as text; it runs on any machine.

    Raises:
        ConfigError: submitit is not installed, or the command does not train.
    """
    require_training(words)
    executor = _executor(cfg, anywhere=True)
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def submit(words: Sequence[str], cfg: SlurmConfig) -> str:
    """Submit a job of Slurm. Returns its number.

    Raises:
        ConfigError: submitit is not installed, the command does not train, or there is no Slurm here.
        TailorbirdError: Slurm refused the job.
    """
    require_training(words)
    executor = _executor(cfg)
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        return executor.submit(Job(words)).job_id
    except (FailedJobError, FailedSubmissionError) as error:
        said = str(error).strip().splitlines() or ["no reason given"]
        raise TailorbirdError(f"Slurm refused the job ({said[-1]}): see the script with --dry-run") from error


def _executor(cfg: SlurmConfig, *, anywhere: bool = False) -> Any:
    try:
        from submitit import SlurmExecutor
    except ImportError:
        raise ConfigError("--slurm needs submitit: pip install 'tailorbird[slurm]'") from None

    class Anywhere(SlurmExecutor):  # type: ignore[misc]
        @classmethod
        def affinity(cls) -> int:
            return 1

    kind = Anywhere if anywhere else SlurmExecutor
    if not anywhere and kind.affinity() < 0:
        raise ConfigError("there is no Slurm here (no srun): submit from a login node, or use --nproc")
    executor = kind(cfg.logs, max_num_timeout=cfg.again)
    executor.update_parameters(**cfg.parameters)
    return executor
