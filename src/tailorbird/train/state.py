"""Checkpoints of a run. Each is a policy (the averaged weights) plus what is needed to go on bit for bit."""

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tailorbird.checkpoint.files import load_weights, read_tensors, write_tensors
from tailorbird.checkpoint.policy import settings_of, write_policy
from tailorbird.checkpoint.settings import to_json
from tailorbird.errors import CheckpointError, ConfigError, DataError
from tailorbird.model.vla import VLA
from tailorbird.processing.pipeline import Pipeline
from tailorbird.storage import new_folder, read_json
from tailorbird.train.config import TrainConfig

MOMENTS = ("exp_avg", "exp_avg_sq")  # in the memory layout of their parameter: the fused step relies on it
FREE = {
    "train.log_every",
    "train.save_every",
    "train.eval_every",
    "train.keep",
}  # may differ between a run and its continuation


def checkpoint_at(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:06d}"


def _checkpoints(run: Path) -> list[Path]:
    """The finished checkpoints, oldest first. Folders with other names are somebody's own."""
    found = [p for p in (run / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d{6,}", p.name)]
    return sorted(found, key=lambda path: int(path.name[5:]))


def newest_checkpoint(run: Path) -> Path | None:
    """The newest finished checkpoint of a run; unfinished ones never bear the name."""
    return next(reversed(_checkpoints(run)), None)


@dataclass(kw_only=True)
class State:
    """How far a run has come: everything that its next steps and its log depend on.

    Attributes:
        mean: the averaged weights.
        losses: of the steps since the last line of the log.
        seconds: spent so far.
    """

    model: VLA
    mean: VLA
    optimizer: torch.optim.Optimizer
    step: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


def save_state(run: Path, state: State, pipeline: Pipeline, cfg: TrainConfig) -> Path:
    """Write the checkpoint of a step, all of it or nothing, then drop the oldest ones."""
    tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in state.model.state_dict().items()}
    names: dict[Tensor, str] = {parameter: name for name, parameter in state.model.named_parameters()}
    for parameter, slots in state.optimizer.state.items():
        tensors |= {f"{slot}.{names[parameter]}": value for slot, value in slots.items()}
    facts = {"step": state.step, "losses": state.losses, "seconds": state.seconds, "train": to_json(cfg)}
    folder = checkpoint_at(run, state.step)
    with new_folder(folder) as temporary:
        write_policy(temporary, state.mean.state_dict(), state.mean.cfg, pipeline)
        write_tensors(temporary / "train.safetensors", tensors)
        (temporary / "train.json").write_text(json.dumps(facts))
    for path in _checkpoints(run)[: -cfg.keep]:
        shutil.rmtree(path)
    return folder


def _changes(then: Any, now: Any, where: str) -> dict[str, tuple[Any, Any]]:
    """What differs between two JSON values, by place: (then, now)."""
    if not (isinstance(then, dict) and isinstance(now, dict)):
        return {} if then == now or where in FREE else {where: (then, now)}
    names = sorted(then.keys() | now.keys())
    parts = [_changes(then.get(name), now.get(name), f"{where}.{name}") for name in names]
    return {place: pair for part in parts for place, pair in part.items()}


def _read_facts(folder: Path, cfg: TrainConfig, mean: VLA, pipeline: Pipeline) -> dict[str, Any]:
    """What train.json says, if the run was begun with these settings and this data."""
    try:
        facts: dict[str, Any] = read_json(folder / "train.json")
        saved: dict[str, Any] = read_json(folder / "config.json")
        words = (folder / "tokenizer.json").read_bytes()
    except (DataError, OSError) as error:
        raise CheckpointError(f"{error}: the run cannot go on from there, use another --out") from None
    then = saved | {"train": facts.get("train")}
    now = settings_of(mean.cfg, pipeline) | {"train": to_json(cfg)}
    now = json.loads(json.dumps(now))
    changed = {
        place: pair for name in now for place, pair in _changes(then.get(name), now[name], name).items()
    }
    if words != pipeline.tokenizer.json.encode():
        changed["tokenizer"] = ("other words", "these")
    if changed:
        raise ConfigError(
            f"{folder} was trained with other settings or data, (then, now): {changed}. "
            "Use the same, or another --out"
        )
    return facts


def load_state(folder: Path, state: State, pipeline: Pipeline, cfg: TrainConfig) -> None:
    """Put everything in `state` back to where it was when the checkpoint was saved.

    Raises:
        ConfigError: the run was begun with another schedule, model, pipeline or data.
        CheckpointError: the files are damaged or of another shape.
    """
    facts = _read_facts(folder, cfg, state.mean, pipeline)
    source = folder / "train.safetensors"
    tensors = read_tensors(source)
    load_weights(state.mean, read_tensors(folder / "model.safetensors"), folder / "model.safetensors")
    weights = {
        name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")
    }
    load_weights(state.model, weights, source)
    try:
        for name, parameter in state.model.named_parameters():
            if f"step.{name}" in tensors:  # weights that no loss reaches have none
                slots = {
                    slot: torch.empty_like(parameter).copy_(tensors[f"{slot}.{name}"]) for slot in MOMENTS
                }
                state.optimizer.state[parameter] = {"step": tensors[f"step.{name}"].clone(), **slots}
        state.step, state.losses = int(facts["step"]), list(facts["losses"])
        state.seconds = float(facts["seconds"])
    except KeyError as error:
        raise CheckpointError(
            f"{folder} lacks {error}: another version saved it. Use that one, or another --out"
        ) from None
