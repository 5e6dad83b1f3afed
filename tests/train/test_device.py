"""On a GPU: a run learns, continues, and its policy acts on the CPU."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import CONFIG, load, new_model, teach

from tailorbird.checkpoint.policy import read_policy
from tailorbird.errors import ConfigError
from tailorbird.recipes.config import TuneConfig
from tailorbird.recipes.finetune import finetune
from tailorbird.train.state import checkpoint_at


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_on_a_gpu_continues_and_learns_what_one_on_the_cpu_does(
    discs: Path, whole: Path, tmp_path: Path
) -> None:
    def run() -> None:
        teach(CONFIG, new_model().to("cuda"), loader, tmp_path)

    def stop() -> None:
        raise KeyboardInterrupt

    loader, _ = load(discs, discs.with_name("frames"))
    loader.step, loader.act = 8, stop
    with pytest.raises(KeyboardInterrupt):
        run()
    loader.step = -1
    run()
    ours, theirs = (read_policy(checkpoint_at(run, 12))[0].state_dict() for run in (tmp_path, whole))
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=CONFIG.lr, msg=name)


def test_a_device_that_is_not_here_is_refused(discs: Path, whole: Path, tmp_path: Path) -> None:
    cfg = TuneConfig(train=replace(CONFIG, device="cuda:77"))
    with pytest.raises(ConfigError, match="cuda:77"):
        finetune(cfg, checkpoint_at(whole, 12), discs, tmp_path)
