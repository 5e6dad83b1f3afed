"""`tailorbird launch`: processes here, and jobs of Slurm, for real as far as that goes without a cluster."""

import os
import pickle
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import submitit

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
from small import write_dataset

from tailorbird.errors import ConfigError
from tailorbird.recipes.launch import Job, SlurmConfig, slurm_script
from tailorbird.train.log import read_metrics
from tailorbird.train.state import checkpoint_at, newest_checkpoint

Typed = Callable[..., tuple[int | str | None, str]]
CFG = SlurmConfig(nodes=2, gpus=4, cpus=6, hours=1.5, partition="big", account="birds", memory_gb=64)
TRAIN = ["train", "tiny", "--train.batch", "4", "--train.accumulate", "2", "--train.threads", "1"]
TRAIN += ["--train.held-out", "0.25", "--train.save-every", "1000", "--train.log-every", "1", "--train.log"]
TRAIN += [
    "--model.vlm.vision.image-size",
    "32",
    "--model.vlm.vision.stem",
    "4",
    "4",
    "4",
    "--model.chunk",
    "3",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("launch") / "data"
    write_dataset(root)
    return root


def words(data: Path, out: Path, steps: int) -> list[str]:
    return [*TRAIN, "--data", str(data), "--out", str(out), "--train.steps", str(steps)]


def wait_for(what: Callable[[], bool], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def logged(run: Path) -> int:
    """The last step in a run's log."""
    return max((row["step"] for row in read_metrics(run)), default=0)


def test_processes_here_save_when_launch_is_told_to_stop(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    here = [sys.executable, "-m", "tailorbird", "launch", "--nproc", "2", "--", *words(data, run, 90000)]
    process = subprocess.Popen(here, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: logged(run) >= 3)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=200)[0]
    assert process.returncode == 0, said
    newest = newest_checkpoint(run)
    assert newest is not None
    assert f"stopped at step {int(newest.name[5:])}, saved" in said
    assert said.count("saved") == 1  # one speaks


def test_a_job_saves_before_its_time_is_up_and_goes_on_in_its_next_turn(data: Path, tmp_path: Path) -> None:
    """By submitit's executor for this machine, whose processes get the same signal as those of Slurm."""
    run, steps = tmp_path / "run", 120
    executor = submitit.LocalExecutor(tmp_path / "logs", max_num_timeout=3)
    executor.update_parameters(tasks_per_node=2, timeout_min=6, signal_delay_s=1)
    job = executor.submit(Job(words(data, run, steps)))
    wait_for(lambda: logged(run) >= 1)
    tasks = [int(pid) for pid in Path(f"/proc/{job.job_id}/task/{job.job_id}/children").read_text().split()]
    assert len(tasks) == 2
    for pid in tasks:
        os.kill(pid, signal.SIGUSR2)
    wait_for(lambda: newest_checkpoint(run) == checkpoint_at(run, steps))
    job.wait()
    said = (tmp_path / f"logs/{job.job_id}_0_log.out").read_text()
    assert "saved: the same command goes on from there" in said
    assert f"Requeued job {job.job_id}" in said
    assert f"continuing {run} at step" in said


def test_the_script_of_a_job_asks_for_what_was_asked_and_runs_a_process_for_each_gpu(tmp_path: Path) -> None:
    script = slurm_script(["train", "vision"], replace(CFG, logs=tmp_path)).splitlines()
    asked = {line.removeprefix("#SBATCH --") for line in script if line.startswith("#SBATCH")}
    assert asked >= {
        "account=birds",
        "cpus-per-task=6",
        "gpus-per-node=4",
        "job-name=tailorbird",
        "mem=64GB",
        "nodes=2",
        "ntasks-per-node=4",
        "partition=big",
        "requeue",
        "signal=USR2@300",
        "time=90",
    }
    (srun,) = (line for line in script if line.startswith("srun"))
    assert f"--cpus-per-task=6 {sys.executable} -u -m submitit.core._submit {tmp_path}" in srun
    assert "qos" not in "".join(asked)
    assert list(tmp_path.iterdir()) == []  # a dry run writes nothing


def test_what_is_submitted_is_the_script_and_the_words_of_the_command(
    tmp_path: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch is a stand-in that keeps the script; nothing else of a cluster is asked for."""
    for name, lines in {
        "srun": "",
        "sbatch": f"cp $1 {tmp_path}/got.sh; echo Submitted batch job 77",
    }.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{lines}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    job = ["--slurm", "--job.logs", tmp_path / "logs", "--job.gpus", "0", "--job.partition", "small"]
    ended, said = typed("launch", *job, "--", "train", "tiny", "--data", "d", "--out", "o")
    assert (ended, "job 77" in said) == (0, True), said
    _, shown = typed("launch", "--dry-run", *job, "--", "train", "tiny", "--data", "d", "--out", "o")
    assert (tmp_path / "got.sh").read_text().strip() == shown.strip()
    stored = pickle.loads((tmp_path / "logs/77_submitted.pkl").read_bytes())  # noqa: S301 (our own)
    assert stored.function.words == ("train", "tiny", "--data", "d", "--out", "o")


def test_without_a_cluster_the_job_is_refused_and_its_script_still_shown(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ended, _ = typed("launch", "--slurm", "--job.logs", tmp_path, "--", "train", "tiny")
    assert "there is no Slurm here (no srun)" in str(ended)
    ended, said = typed("launch", "--slurm", "--dry-run", "--job.logs", tmp_path, "--", "train", "tiny")
    assert (ended, "#SBATCH --nodes=1" in said) == (0, True)
    ended, said = typed("launch", "--nproc", "3", "--dry-run", "--", "train", "tiny")
    assert "-m torch.distributed.run --standalone --nproc-per-node=3 --max-restarts=0 -m tailorbird" in said


def test_a_command_that_does_not_train_and_odd_numbers_are_refused(typed: Typed) -> None:
    ended, _ = typed("launch", "--", "chat", "x")
    assert "launch starts train or finetune, not chat" in str(ended)
    ended, _ = typed("launch", "--nproc", "0", "--", "train", "tiny")
    assert "processes=0 must be at least 1" in str(ended)
    for wrong in ({"nodes": 0}, {"gpus": -1}, {"notice_s": 0}, {"hours": 0.1}):
        with pytest.raises(ConfigError, match=r"at least 1|less than half"):
            SlurmConfig(**wrong)


def test_a_failed_process_fails_the_command_which_says_where_to_look(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tailorbird", "launch", "--nproc", "1", "--", "train", "tiny"]
    command += ["--data", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "is no folder here" in done.stderr
    assert "error: one of 1 processes failed: what it said is above" in done.stderr
