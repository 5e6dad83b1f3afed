"""Checkpoints of a run. Each is a policy (the averaged weights) plus what is needed to go on bit for bit."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tailorbird.checkpoint.policy import load_weights, read_tensors, write_policy
from tailorbird.checkpoint.settings import to_json
from tailorbird.errors import ConfigError
from tailorbird.model.vla import VLA
from tailorbird.processing.pipeline import Pipeline
from tailorbird.storage import new_folder, read_json
from tailorbird.train.config import TrainConfig

MOMENTS = ("exp_avg", "exp_avg_sq")  # in the memory layout of their parameter: the fused step relies on it
FREE = {"log_every", "save_every", "keep"}  # may differ between a run and its continuation


def checkpoint_at(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:06d}"


def newest_checkpoint(run: Path) -> Path | None:
    """The newest finished checkpoint of a run; unfinished ones never bear the name."""
    found = [p for p in (run / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d{6,}", p.name)]
    return max(found, key=lambda path: int(path.name[5:]), default=None)


def save_state(
    run: Path,
    step: int,
    model: VLA,
    mean: VLA,
    optimizer: torch.optim.Optimizer,
    pipeline: Pipeline,
    cfg: TrainConfig,
) -> Path:
    """Write the checkpoint of a step, all of it or nothing, then drop the oldest ones."""
    tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in model.state_dict().items()}
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    for parameter, slots in optimizer.state.items():
        tensors |= {f"{slot}.{names[parameter]}": value for slot, value in slots.items()}
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    folder = checkpoint_at(run, step)
    with new_folder(folder) as temporary:
        write_policy(temporary, mean.state_dict(), mean.cfg, pipeline)
        save_file(tensors, temporary / "train.safetensors")
        (temporary / "train.json").write_text(json.dumps({"step": step, "train": to_json(cfg)}))
    old = sorted((run / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))[: -cfg.keep]
    for path in old:
        shutil.rmtree(path)
    return folder


def load_state(
    folder: Path, model: VLA, mean: VLA, optimizer: torch.optim.Optimizer, cfg: TrainConfig
) -> int:
    """Put model, averaged weights and optimizer back to where they were. Returns the number of steps done.

    Raises:
        ConfigError: the run was made with other settings.
        CheckpointError: the files are damaged or of another shape.
    """
    facts: dict[str, Any] = read_json(folder / "train.json")
    now, then = json.loads(json.dumps(to_json(cfg))), facts["train"]
    changed = {name: (then.get(name), now[name]) for name in now.keys() - FREE if then.get(name) != now[name]}
    if changed:
        raise ConfigError(
            f"{folder} was trained with other settings, (then, now): {changed}. "
            "Use the same, or another --out"
        )
    source = folder / "train.safetensors"
    tensors = read_tensors(source)
    load_weights(mean, read_tensors(folder / "model.safetensors"), folder / "model.safetensors")
    weights = {
        name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")
    }
    load_weights(model, weights, source)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            slots = {slot: torch.empty_like(parameter).copy_(tensors[f"{slot}.{name}"]) for slot in MOMENTS}
            optimizer.state[parameter] = {"step": tensors[f"step.{name}"], **slots}
    return int(facts["step"])
