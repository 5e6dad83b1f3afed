"""Checkpoints of a run. Each is a model for its users plus what is needed to go on bit for bit."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor, nn

from tailorbird.checkpoint.files import read_tensors, write_tensors
from tailorbird.checkpoint.settings import to_json
from tailorbird.errors import CheckpointError, ConfigError, DataError
from tailorbird.provenance import commit, versions
from tailorbird.storage import changes, drop_folder, new_folder, read_json
from tailorbird.train import stages
from tailorbird.train.config import TrainConfig
from tailorbird.train.lesson import Lesson, M, P
from tailorbird.train.lora import adapter_of, merged_weights
from tailorbird.train.network import build_network, refresh
from tailorbird.train.optim import build_optimizer, put_slots, slots_of, start_average
from tailorbird.train.parallel import (
    Sharded,
    Spread,
    Team,
    Whole,
    check_sharding,
    is_shard,
    like,
    positions_of,
    same_everywhere,
    whole,
)
from tailorbird.train.stages import Group
from tailorbird.train.tally import joined

FREE = {  # may differ between a run and its continuation
    "train.log",
    "train.log_every",
    "train.save_every",
    "train.eval_every",
    "train.keep",
    "train.skip_bad_steps",
    "train.parallel",
}
KEPT: dict[str, type] = {"step": int, "losses": list, "seconds": float}
NEWER = ("sums", "recent", "skipped", "best")  # which older versions did not save


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
class State(Generic[M]):
    """How far a run has come: everything that its next steps and its log depend on.

    Attributes:
        model: what learns is fp32 here, whatever computes.
        mean: the averaged weights; None if there are none.
        network: computes the gradients: the model, or a narrow copy of it.
        losses: of the steps since the last line of the log.
        sums: of other figures since then.
        recent: losses of the last steps, by which a spike is known.
        skipped: steps that were left out so far.
        team: the processes that learn together, and how weights are spread over them.
        best: the step with the best figure of an evaluation, and that figure.
        seconds: spent so far.
    """

    model: M
    mean: M | None
    network: M
    optimizer: torch.optim.Optimizer
    groups: Sequence[Group]
    team: Team
    spread: Spread
    step: int = 0
    losses: list[float] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    recent: list[float] = field(default_factory=list)
    skipped: int = 0
    best: tuple[int, float] | None = None
    seconds: float = 0.0

    @property
    def learned(self) -> dict[str, nn.Parameter]:
        """What learns at some time, by name."""
        return {name: weight for group in self.groups for name, weight in group.weights.items()}

    @property
    def saved(self) -> M:
        """Whose weights a checkpoint's users get."""
        return self.mean or self.model


def start_state(model: M, groups: Sequence[Group], cfg: TrainConfig, team: Team | None = None) -> State[M]:
    """Before the first step. With fsdp the weights of the model become shards, and the groups new ones."""
    team = team or Team()
    same_everywhere(model, team)
    mean = start_average(model, groups) if cfg.ema else None
    spread: Spread = Whole(team)
    if team.world > 1 and cfg.parallel == "fsdp":
        check_sharding(model, cfg)
        computes_in = {id(model): (model, getattr(torch, cfg.precision))}
        if mean is not None:
            computes_in[id(mean)] = (mean, torch.float32)
        spread, cfg = Sharded(computes_in), replace(cfg, precision="float32")  # its shards are the wide copy
        own = dict(model.named_parameters())
        groups = [replace(group, weights={name: own[name] for name in group.weights}) for group in groups]
    network = build_network(model, groups, cfg).train()
    return State(
        model=model,
        mean=mean,
        network=network,
        optimizer=build_optimizer(groups, cfg),
        groups=groups,
        team=team,
        spread=spread,
    )


def snapshot(run: Path, state: State[M], lesson: Lesson[M, P], cfg: TrainConfig) -> Callable[[], Path]:
    """Copy all that a checkpoint of this step holds. What comes back writes it, while training goes on.

    All of it is written or nothing; then the oldest checkpoints are dropped. The model for users is complete;
    of what never learns the rest holds no copy.

    Of several processes all must call it, and the first one's writes: shards are joined tensor by tensor, so
    that a device holds no more than one whole, and there is one format, which any number of them reads.
    """
    learned, team = state.learned, state.team
    tensors = {f"model.{name}": weight.detach() for name, weight in learned.items()}
    if state.mean is not None:
        means = dict(state.mean.named_parameters())
        tensors |= {f"mean.{name}": means[name] for name in learned}
    for name, weight in learned.items():
        tensors |= {f"{slot}.{name}": value for slot, value in slots_of(state.optimizer, weight).items()}
    facts = {name: getattr(state, name) for name in (*KEPT, *NEWER)}
    facts |= {"position": positions_of(team.gather(lesson.position()))}
    facts |= {"sums": joined(team.gather(state.sums)), "commit": commit(), "versions": versions()}
    facts["settings"] = _settings(state, lesson, cfg)
    text, folder, best = json.dumps(facts), checkpoint_at(run, state.step), state.best
    unlearned = [one for name, one in state.model.named_parameters() if name not in learned]
    copies = _Copies(team, fixed=unlearned)
    kind = "model" if state.mean is None else "mean"
    weights = {name: tensors.get(f"{kind}.{name}", one) for name, one in merged_weights(state.saved).items()}
    tensors, weights = copies.of(tensors), copies.of(weights)
    adapter = adapter_of(state.saved, learned)

    def write() -> Path:
        with new_folder(folder) as temporary:
            lesson.write(temporary, weights)
            if adapter is not None:
                lesson.write_adapter(temporary / "adapter", adapter)
            write_tensors(temporary / "train.safetensors", tensors)
            (temporary / "train.json").write_text(text)
        for path in _checkpoints(run)[: -cfg.keep]:
            if best is None or path != checkpoint_at(run, best[0]):
                drop_folder(path)
        return folder

    return write


class _Copies:
    """Tensors on the CPU of the first process, each copied once, those of `fixed` never."""

    def __init__(self, team: Team, fixed: Sequence[Tensor]) -> None:
        self._writes, self._fixed = team.is_first, {_place(one) for one in fixed}
        self._made: dict[int, Tensor] = {}

    def of(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, value in tensors.items():
            place = _place(value)
            if place not in self._made:
                full, is_copy = whole(value.detach()), place in self._fixed or is_shard(value)
                if not self._writes:
                    full = full.new_empty(0)
                self._made[place] = full.to("cpu", copy=not is_copy)
            found[name] = self._made[place]
        return found


def _place(value: Tensor) -> int:
    """What two names of one tensor share. Shards may be empty, and so have no address."""
    return id(value) if is_shard(value) else value.data_ptr()


def _settings(state: State[M], lesson: Lesson[M, P], cfg: TrainConfig) -> dict[str, Any]:
    """All that decides the next step, besides the data and the weights, as JSON has it."""
    settings = {**lesson.settings, "train": to_json(cfg), "stages": stages.settings_of(state.groups)}
    return json.loads(json.dumps(settings))


def _read_facts(folder: Path, now: dict[str, Any], cfg: TrainConfig) -> dict[str, Any]:
    """What train.json says, if the run was begun with these settings and this data."""
    try:
        facts: dict[str, Any] = read_json(folder / "train.json")
        then = {"stages": {}, **facts["settings"]}
        usual = json.loads(json.dumps(to_json(type(cfg)())))
        then["train"] = usual | then["train"]  # an older version had fewer settings, and did as is usual now
    except (DataError, OSError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder}/train.json: {error}: the run cannot go on from there, use another --out"
        ) from None
    found = changes({name: then.get(name) for name in now}, now)
    if changed := {place: pair for place, pair in found.items() if place not in FREE}:
        raise ConfigError(
            f"{folder} was trained with other settings or data, (then, now): {changed}. "
            "Use the same, or another --out"
        )
    return facts


@torch.no_grad()
def load_state(folder: Path, state: State[M], lesson: Lesson[M, P], cfg: TrainConfig) -> None:
    """Put `state` and `lesson` back to where they were when the checkpoint was saved.

    What does not learn must be in the models already.

    Raises:
        ConfigError: the run was begun with another schedule, model, pipeline or data.
        CheckpointError: the files are damaged or of another shape.
    """
    facts = _read_facts(folder, _settings(state, lesson, cfg), cfg)
    tensors = read_tensors(folder / "train.safetensors")
    learned = state.learned
    if unknown := {key.partition(".")[2] for key in tensors} - learned.keys():
        raise CheckpointError(
            f"{folder} has learned {len(unknown)} tensors that do not learn now, {sorted(unknown)[:3]}: "
            "use the same --learn, or another --out"
        )
    try:
        _load_tensors(tensors, state, folder)
        state.step, state.losses, state.seconds = (kind(facts[name]) for name, kind in KEPT.items())
        state.sums = dict(facts.get("sums", {})) if state.team.is_first else {}  # they are added up
        state.recent = list(facts.get("recent", []))
        state.skipped, best = int(facts.get("skipped", 0)), facts.get("best")
        state.best = None if best is None else (int(best[0]), float(best[1]))
        lesson.restore(facts.get("position"))
    except KeyError as error:
        raise CheckpointError(
            f"{folder} lacks {error}: another version saved it, or another part of the model learned. "
            "Use that, or another --out"
        ) from None
    refresh(state.network, state.groups)


def _load_tensors(tensors: Mapping[str, Tensor], state: State[M], folder: Path) -> None:
    """Raises KeyError for one that is missing, CheckpointError for one of another shape."""
    slots: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        slot, _, name = key.partition(".")
        slots.setdefault(name, {})[slot] = value
    means = {} if state.mean is None else dict(state.mean.named_parameters())
    for name, weight in state.learned.items():
        targets = {"model": weight} | ({"mean": means[name]} if means else {})
        for kind, target in targets.items():
            value = tensors[f"{kind}.{name}"]
            if value.shape != target.shape:
                raise CheckpointError(
                    f"{folder}: {kind}.{name} has shape {tuple(value.shape)}, the model needs "
                    f"{tuple(target.shape)}: use the same settings, or another --out"
                )
            target.copy_(like(value, target))
        if "step" in slots[name]:  # weights that no loss has reached yet have none
            try:
                put_slots(state.optimizer, weight, slots[name])
            except KeyError as error:
                raise KeyError(f"{error.args[0]}.{name}") from None
