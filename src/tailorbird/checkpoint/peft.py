"""Low-rank updates as `peft` keeps them: adapter_config.json beside adapter_model.safetensors."""

import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from tailorbird.checkpoint.files import list_tensors, read_tensors, write_tensors
from tailorbird.checkpoint.folder import read_object
from tailorbird.checkpoint.released import LARGEST
from tailorbird.checkpoint.table import Rule, convert, revert
from tailorbird.errors import CheckpointError
from tailorbird.storage import new_folder, write_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of every key
DOWN, UP, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
READ = {"peft_type", "r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora", "init_lora_weights"}
SILENT = {  # changes no number: who made it and how, and where it is attached, which the tensors say
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "megatron_core",
    "modules_to_save",
    "peft_version",
    "qalora_group_size",
    "revision",
    "target_modules",
    "task_type",
}
STARTS = (True, False, "gaussian", "orthogonal", "eva")  # the others take a part out of the frozen weights


class Place(NamedTuple):
    """The rows [start, stop) of a linear layer, by the layer's name in our model."""

    layer: str
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Update:
    """down: (rank, in); up: (rows, rank), not scaled; magnitude: (rows,), the lengths that DoRA learns."""

    down: Tensor
    up: Tensor
    magnitude: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What a model learned beside its own weights, fp32 on the CPU.

    Attributes:
        alpha: an update counts alpha / rank times.
        updates: by the rows that they change.
        whole: the weights of whole modules that take the places of the model's own, by our names.
    """

    rank: int
    alpha: float
    dropout: float
    updates: Mapping[Place, Update]
    whole: Mapping[str, Tensor]

    @property
    def dora(self) -> bool:
        return any(update.magnitude is not None for update in self.updates.values())


def write_adapter(folder: Path, adapter: Adapter, rules: Sequence[Rule], base: str) -> None:
    """Write an adapter so that `peft` loads it onto the model that the table's other side names.

    rules: the table of the model, as `smolvlm.vlm_rules` gives it.
    base: hub id or folder of the model that it was made from, for whoever loads it.

    Raises:
        CheckpointError: a weight is not in the table, or has two names there.
    """
    names = {place: module for module, place in _modules(rules).items()}
    tensors: dict[str, Tensor] = {}
    for place, update in adapter.updates.items():
        module = names.get(place[:2])
        if module is None:
            raise CheckpointError(f"cannot write {folder}: peft has no layer for the rows of {place}")
        tensors |= {module + DOWN: update.down, module + UP: update.up}
        if update.magnitude is not None:
            tensors[module + MAGNITUDE] = update.magnitude
    whole = revert(adapter.whole, [rule for rule in rules if rule.ours in adapter.whole])
    _require_untied(whole, rules, f"cannot write {folder}")
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "use_dora": adapter.dora,
        "use_rslora": False,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted(names[place[:2]] for place in adapter.updates),
        "modules_to_save": sorted({key.rpartition(".")[0] for key in whole}) or None,
    }
    with new_folder(folder) as temporary:
        write_json(temporary / CONFIG, config)
        named = {PREFIX + key: value for key, value in (tensors | whole).items()}
        write_tensors(temporary / WEIGHTS, named, {"format": "pt"})


def read_adapter(folder: Path, rules: Sequence[Rule]) -> Adapter:
    """Read an adapter for the model of a table. `train.lora.attach` gives it to a model.

    Raises:
        CheckpointError: a file is missing or damaged, or the adapter changes a model otherwise than by LoRA,
            DoRA and whole modules, or belongs to another model.
    """
    source, path = folder / CONFIG, folder / WEIGHTS
    config = read_object(source)
    rank, alpha, dropout = _settings(config, source)
    list_tensors(path)  # refuses what is no float
    factors: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for key, value in read_tensors(path).items():
        name = key.removeprefix(PREFIX)
        kind = next((end for end in (DOWN, UP, MAGNITUDE) if name.endswith(end)), None)
        if kind:
            factors.setdefault(name.removesuffix(kind), {})[kind] = value.float()
        else:
            whole[name] = value.float()
    needed = {DOWN, UP} | ({MAGNITUDE} if config.get("use_dora") else set())
    places, updates = _modules(rules), {}
    for module, parts in factors.items():
        if module not in places:
            raise CheckpointError(f"{path} changes {module}, which the model has not: take the one it is for")
        if parts.keys() != needed:
            raise CheckpointError(
                f"{path}: {module} has {sorted(parts)} and should have {sorted(needed)}: save it again"
            )
        layer, start = places[module]
        update = Update(down=parts[DOWN], up=parts[UP], magnitude=parts.get(MAGNITUDE))
        _require_factors(update, rank, f"{path}: {module}")
        updates[Place(layer, start, start + len(update.up))] = update
    return Adapter(rank=rank, alpha=alpha, dropout=dropout, updates=updates, whole=_whole(whole, rules, path))


def _modules(rules: Iterable[Rule]) -> dict[str, tuple[str, int]]:
    """By their name of a module with a weight: our layer, and the first of its rows there."""
    found: dict[str, tuple[str, int]] = {}
    for rule in rules:
        if rule.ours is None or not rule.ours.endswith(".weight"):
            continue
        layer = rule.ours.removesuffix(".weight")
        for number, key in enumerate(rule.theirs):
            found[key.removesuffix(".weight")] = (layer, sum(rule.rows[:number]))
    return found


def _settings(config: Mapping[str, Any], source: Path) -> tuple[int, float, float]:
    """Rank, alpha and dropout; alpha as it would be without rank stabilisation.

    Raises:
        CheckpointError: the file asks for something else that would change what the model computes.
    """
    asked = {name: value for name, value in config.items() if name not in READ | SILENT}
    strange = [name for name, value in asked.items() if value not in (None, False, "none", [], {})]
    strange += [] if config.get("peft_type") == "LORA" else ["peft_type"]
    strange += [] if config.get("init_lora_weights", True) in STARTS else ["init_lora_weights"]
    if strange:
        name = strange[0]
        raise CheckpointError(
            f"{source}: {name} is {reprlib.repr(config.get(name))}, and only LoRA and DoRA of one rank and "
            "modules_to_save are supported. Merge the adapter with peft, and use the merged model"
        )
    given: dict[str, Any] = {"r": None, "lora_alpha": None, "lora_dropout": 0.0, **config}
    rank, alpha, dropout = given["r"], given["lora_alpha"], given["lora_dropout"]
    if type(rank) is not int or not 1 <= rank <= LARGEST:
        raise CheckpointError(f"{source}: r is {reprlib.repr(rank)} and should be a positive whole number")
    if type(alpha) not in (int, float) or not 0 < alpha < math.inf:
        raise CheckpointError(
            f"{source}: lora_alpha is {reprlib.repr(alpha)} and should be a positive number"
        )
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        raise CheckpointError(f"{source}: lora_dropout is {reprlib.repr(dropout)} and should be in [0, 1)")
    return rank, alpha * math.sqrt(rank) if config.get("use_rslora") else float(alpha), float(dropout)


def _require_factors(update: Update, rank: int, where: str) -> None:
    down, up, lengths = update.down, update.up, update.magnitude
    fits = down.dim() == up.dim() == 2 and len(down) == up.shape[1] == rank
    if not fits or (lengths is not None and lengths.shape != up.shape[:1]):
        shapes = [tuple(one.shape) for one in (down, up, lengths) if one is not None]
        raise CheckpointError(
            f"{where} has factors of shapes {shapes}, which are no update of a linear layer by rank {rank}: "
            "use the adapter_config.json that was saved with them"
        )


def _whole(theirs: Mapping[str, Tensor], rules: Sequence[Rule], path: Path) -> dict[str, Tensor]:
    """By our names, weights of modules that were saved whole."""
    known = {key: rule for rule in rules for key in rule.theirs}
    if strange := sorted(theirs.keys() - known.keys()):
        raise CheckpointError(
            f"{path} has {len(strange)} tensors that are neither weights of the model nor factors of LoRA or "
            f"DoRA on a linear layer, first: {strange[0]}. Merge the adapter with peft, and use that model"
        )
    _require_untied(theirs, rules, f"cannot read {path}")
    for key in theirs:
        if missing := [one for one in known[key].theirs if one not in theirs]:
            raise CheckpointError(
                f"{path} has {key} without {missing[0]}, and here they are one weight, which learns whole or "
                "not at all: merge the adapter with peft, and use the merged model"
            )
    return convert(theirs, [rule for rule in rules if rule.ours and rule.theirs[0] in theirs])


def _require_untied(theirs: Iterable[str], rules: Iterable[Rule], what: str) -> None:
    """Raises CheckpointError for a weight that `peft` sees under two names, each with a copy of its own."""
    shared = {key: rule for rule in rules if rule.repeats for key in (*rule.theirs, rule.repeats)}
    for key in theirs:
        if key in shared:
            raise CheckpointError(
                f"{what}: {shared[key].theirs[0]} and {shared[key].repeats} are one weight of the model and "
                "would be two with peft. Merge the adapter, and use the merged model"
            )
