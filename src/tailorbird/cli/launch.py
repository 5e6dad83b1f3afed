"""tailorbird launch"""

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from tailorbird.recipes.launch import SlurmConfig


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Start a training as several processes that learn together, here or on a cluster.

    Example: tailorbird launch --nproc 2 -- train vision --model runs/new --data my.jsonl --out runs/vision

    Example: tailorbird launch --slurm --job.nodes 2 --job.gpus 8 --job.partition gpu -- train video --model
    runs/vision/model --data my.jsonl --out runs/video --train.parallel fsdp

    What follows -- is any `train` or `finetune`. The run is that of one process, and goes on as any number of
    them: --rows.lanes, of a policy --train.accumulate, must be a multiple of their number.

    Here, Ctrl-C and SIGTERM save and end all of them, and --restarts starts them again after a failure.

    With --slurm, the job's processes save when Slurm says that its time is almost up, and the job goes back
    to the queue; there it goes on, as after being pushed aside. `scancel` ends it for good.
    """

    words: tyro.conf.Positional[tuple[str, ...]]
    """The command, after --."""
    nproc: int = 2
    """Processes here; of GPUs, one for each."""
    restarts: int = 0
    """So often all processes here are started again after one has failed."""
    slurm: bool = False
    """Submit a job of Slurm (pip install 'tailorbird[slurm]')."""
    dry_run: bool = False
    """Print the job's script, or the command line of torchrun, and start nothing."""
    job: Annotated[SlurmConfig, tyro.conf.arg(name="job")] = field(default_factory=SlurmConfig)

    def __call__(self) -> None:
        from shlex import join

        from tailorbird.progress import console
        from tailorbird.recipes.launch import run_here, slurm_script, submit, torchrun

        if self.dry_run:
            here = join(torchrun(self.words, self.nproc, self.restarts))
            text = slurm_script(self.words, self.job) if self.slurm else here
            console.print(text, soft_wrap=True, markup=False, highlight=False)
        elif self.slurm:
            number = submit(self.words, self.job)
            console.print(f"job {number}; what its processes say: {self.job.logs}/{number}_*_log.*")
        else:
            run_here(self.words, self.nproc, self.restarts)
