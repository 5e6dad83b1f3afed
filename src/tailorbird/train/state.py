"""Checkpoints of a run. Each is a policy (the averaged weights) plus what is needed to go on bit for bit."""

import hashlib
import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tailorbird.checkpoint.files import read_tensors, write_tensors
from tailorbird.checkpoint.policy import settings_of, write_policy
from tailorbird.checkpoint.settings import to_json
from tailorbird.errors import CheckpointError, ConfigError, DataError
from tailorbird.model.vla import VLA
from tailorbird.processing.pipeline import Pipeline
from tailorbird.storage import new_folder, read_json
from tailorbird.train.config import TrainConfig
from tailorbird.train.lora import merged_weights

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

    def learned(self) -> dict[str, tuple[nn.Parameter, Tensor]]:
        """What learns, by name: the parameter and its average."""
        pairs = zip(self.model.named_parameters(), self.mean.parameters(), strict=True)
        return {name: (parameter, mean) for (name, parameter), mean in pairs if parameter.requires_grad}


def save_state(run: Path, state: State, pipeline: Pipeline, cfg: TrainConfig) -> Path:
    """Write the checkpoint of a step, all of it or nothing, then drop the oldest ones.

    The policy is complete. Of what stays as it was the rest holds no copy.
    """
    learned = state.learned()
    tensors = {f"model.{name}": parameter.detach() for name, (parameter, _) in learned.items()}
    tensors |= {f"mean.{name}": mean for name, (_, mean) in learned.items()}
    for name, (parameter, _) in learned.items():
        slots = state.optimizer.state.get(parameter, {})
        tensors |= {f"{slot}.{name}": value for slot, value in slots.items()}
    settings = _settings(state.mean, pipeline, cfg)
    facts = {"step": state.step, "losses": state.losses, "seconds": state.seconds, "settings": settings}
    folder = checkpoint_at(run, state.step)
    with new_folder(folder) as temporary:
        write_policy(temporary, merged_weights(state.mean), state.mean.cfg, pipeline)
        write_tensors(temporary / "train.safetensors", tensors)
        (temporary / "train.json").write_text(json.dumps(facts))
    for path in _checkpoints(run)[: -cfg.keep]:
        shutil.rmtree(path)
    return folder


def _settings(model: VLA, pipeline: Pipeline, cfg: TrainConfig) -> dict[str, Any]:
    """All that decides the next step, besides the data and the weights, as JSON has it."""
    words = hashlib.sha256(pipeline.tokenizer.json.encode()).hexdigest()
    settings = {**settings_of(model.cfg, pipeline), "tokenizer": words, "train": to_json(cfg)}
    return json.loads(json.dumps(settings))


def _changes(then: Any, now: Any, where: str) -> dict[str, tuple[Any, Any]]:
    """What differs between two JSON values, by place: (then, now)."""
    if not (isinstance(then, dict) and isinstance(now, dict)):
        return {} if then == now or where in FREE else {where: (then, now)}
    names = sorted(then.keys() | now.keys())
    parts = [_changes(then.get(name), now.get(name), f"{where}.{name}") for name in names]
    return {place: pair for part in parts for place, pair in part.items()}


def _read_facts(folder: Path, now: dict[str, Any]) -> dict[str, Any]:
    """What train.json says, if the run was begun with these settings and this data."""
    try:
        facts: dict[str, Any] = read_json(folder / "train.json")
        then = facts["settings"]
    except (DataError, OSError, KeyError) as error:
        raise CheckpointError(
            f"{folder}/train.json: {error}: the run cannot go on from there, use another --out"
        ) from None
    if changed := {
        place: pair for name in now for place, pair in _changes(then.get(name), now[name], name).items()
    }:
        raise ConfigError(
            f"{folder} was trained with other settings or data, (then, now): {changed}. "
            "Use the same, or another --out"
        )
    return facts


@torch.no_grad()
def load_state(folder: Path, state: State, pipeline: Pipeline, cfg: TrainConfig) -> None:
    """Put everything in `state` back to where it was when the checkpoint was saved.

    What does not learn must be in the models already.

    Raises:
        ConfigError: the run was begun with another schedule, model, pipeline or data.
        CheckpointError: the files are damaged or of another shape.
    """
    facts = _read_facts(folder, _settings(state.mean, pipeline, cfg))
    tensors = read_tensors(folder / "train.safetensors")
    learned = state.learned()
    if unknown := {key.partition(".")[2] for key in tensors} - learned.keys():
        raise CheckpointError(
            f"{folder} has learned {len(unknown)} tensors that do not learn now, {sorted(unknown)[:3]}: "
            "use the same --learn, or another --out"
        )
    try:
        for name, (parameter, mean) in learned.items():
            for kind, value in (("model", parameter), ("mean", mean)):
                value.copy_(_fitting(tensors[f"{kind}.{name}"], value, f"{folder}: {kind}.{name}"))
            if f"step.{name}" in tensors:  # weights that no loss reaches have none
                slots = {
                    slot: torch.empty_like(parameter).copy_(tensors[f"{slot}.{name}"]) for slot in MOMENTS
                }
                state.optimizer.state[parameter] = {
                    "step": tensors[f"step.{name}"].to(parameter.device, copy=True),
                    **slots,
                }
        state.step, state.losses = int(facts["step"]), list(facts["losses"])
        state.seconds = float(facts["seconds"])
    except KeyError as error:
        raise CheckpointError(
            f"{folder} lacks {error}: another version saved it, or another part of the model learned. "
            "Use that, or another --out"
        ) from None


def _fitting(value: Tensor, target: Tensor, what: str) -> Tensor:
    if value.shape != target.shape:
        raise CheckpointError(
            f"{what} has shape {tuple(value.shape)}, the model needs {tuple(target.shape)}: "
            "use the same settings, or another --out"
        )
    return value
