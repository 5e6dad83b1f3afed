"""What stands around a policy of lerobot: two processor files, and statistics in them or in the weights."""

import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tailorbird.checkpoint.files import Stored, TensorReader, read_tensors
from tailorbird.checkpoint.folder import read_object
from tailorbird.checkpoint.released import Fields
from tailorbird.errors import CheckpointError, MissingStats
from tailorbird.processing.normalize import EPS, Identity, Normalizer, RangeNormalizer, Scale, take

BEFORE, AFTER = "policy_preprocessor", "policy_postprocessor"
STATE, ACTION, CAMERA = "observation.state", "action", "observation.images."
NORMALIZE, UNNORMALIZE, TOKENIZE = "normalizer_processor", "unnormalizer_processor", "tokenizer_processor"
RENAME, NEW_LINE = "rename_observations_processor", "smolvla_new_line_processor"
STEPS = {  # what may and must be there: another step would change the numbers, a missing one too
    BEFORE: ((RENAME, "to_batch_processor", "device_processor"), (NEW_LINE, TOKENIZE, NORMALIZE)),
    AFTER: (("device_processor",), (UNNORMALIZE,)),
}
RANGES = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}
INSIDE = re.compile(  # statistics among the weights, as lerobot had them before it had processors
    r"(?:un)?normalize(?:_inputs|_outputs|_targets)?\.(.+)\.(mean|std|min|max)"
)
Stats = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Around:
    """The processors of a policy. modes: how each kind of feature is normalised.

    names: the robot's keys of features to the policy's.
    before, after: statistics for what comes in, and for what goes out.
    """

    names: Mapping[str, str]
    max_tokens: int
    tokenizer_name: str
    modes: Mapping[str, str]
    eps: float
    before: Stats
    after: Stats

    @property
    def rename(self) -> dict[str, str]:
        """The same without what keys begin with: the robot's cameras to the policy's, and others."""
        return {short(key): short(value) for key, value in self.names.items()}


def read_around(folder: Path) -> Around | None:
    """None if the folder has no processor files: then the statistics are among the weights.

    Raises:
        CheckpointError: a file is missing or damaged, or a step is there that would change the numbers.
    """
    if not (folder / f"{BEFORE}.json").exists() and not (folder / f"{AFTER}.json").exists():
        return None
    before, after = (_read_steps(folder / f"{name}.json") for name in (BEFORE, AFTER))
    words, normal = before[TOKENIZE].inner("config"), before[NORMALIZE].inner("config")
    modes = dict(normal.inner("norm_map").values)
    if modes.get("ACTION") != after[UNNORMALIZE].inner("config").inner("norm_map").values.get("ACTION"):
        raise after[UNNORMALIZE].inner("config").wrong("norm_map", f"that of {BEFORE}.json: {modes}")
    kept = normal.values.get("normalize_observation_keys")
    if kept is not None and (not isinstance(kept, list) or STATE not in kept):
        modes["STATE"] = "IDENTITY"
    names = before[RENAME].inner("config").inner("rename_map").values if RENAME in before else {}
    if not all(isinstance(value, str) for value in names.values()):
        raise before[RENAME].inner("config").wrong("rename_map", "names to names")
    return Around(
        names=names,
        max_tokens=words.whole("max_length", 512),
        tokenizer_name=model_name(words, "tokenizer_name"),
        modes=modes,
        eps=normal.real("eps", EPS),
        before=_read_state(folder, before[NORMALIZE]),
        after=_read_state(folder, after[UNNORMALIZE]),
    )


def model_name(fields: Fields, name: str, default: str | None = None) -> str:
    value = fields.values.get(name, default)
    if not isinstance(value, str) or not value:
        raise fields.wrong(name, "a hub id or a folder")
    return value


def short(key: str) -> str:
    """The name of a camera, from the key of its feature."""
    return key.removeprefix(CAMERA) if key.startswith(CAMERA) else key.removeprefix("observation.")


def _read_steps(path: Path) -> dict[str, Fields]:
    steps, found = read_object(path).get("steps"), {}
    optional, required = STEPS[path.stem]
    for step in steps if isinstance(steps, list) else []:
        name = step.get("registry_name", step.get("class")) if isinstance(step, dict) else step
        if name not in (*optional, *required) or name in found:
            raise CheckpointError(
                f"{path} has a step {reprlib.repr(name)}, and what is read, each once, is "
                f"{', '.join((*optional, *required))}: the policy would act otherwise than it learned. Run "
                "it with lerobot"
            )
        found[name] = Fields(str(path), name, step)
        if name == "device_processor":
            found[name].inner("config").require({"float_dtype": (None, "float32")})
    if missing := [name for name in required if name not in found]:
        raise CheckpointError(
            f"{path} has no step {', '.join(missing)}: save or fetch the checkpoint again, or run it "
            "with lerobot"
        )
    order = list(found)
    if NEW_LINE in found and order.index(TOKENIZE) < order.index(NEW_LINE):
        raise CheckpointError(
            f"{path} has {TOKENIZE} before {NEW_LINE}, which then changes no token: the policy would act "
            "otherwise than here. Save the checkpoint again, or run it with lerobot"
        )
    return found


def _read_state(folder: Path, step: Fields) -> Stats:
    name = step.values.get("state_file")
    if name is None:
        return {}
    if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name):
        raise step.wrong("state_file", "the name of a safetensors file beside it")
    return _nested((*key.rsplit(".", 1), value) for key, value in read_tensors(folder / name).items())


def stats_inside(stored: Mapping[str, Stored]) -> tuple[list[str], Stats]:
    """The keys of weights that are statistics, and these."""
    keys = {key: match for key in stored if (match := INSIDE.fullmatch(key))}
    reader = TensorReader({key: stored[key] for key in keys})

    def read(key: str) -> Tensor:
        value = torch.empty(stored[key].shape)
        reader.copy(key, value)
        return value

    named = ((_dotted(match[1]), match[2], read(key)) for key, match in keys.items())
    return list(keys), _nested(named)


def _dotted(name: str) -> str:
    return name.removeprefix("buffer_").replace("_", ".")


def _nested(flat: Iterable[Sequence[Any]]) -> Stats:
    found: dict[str, dict[str, Tensor]] = {}
    for part in flat:
        if len(part) == 3:
            found.setdefault(part[0], {})[part[1]] = part[2].float()
    return found


def choose(stats: Stats, name: str) -> Stats:
    """The statistics of one of the sets of data that a file holds, such as so100 in `so100.buffer.action`."""
    return {
        key.removeprefix(f"{name}.").removeprefix("buffer."): value
        for key, value in stats.items()
        if key.startswith(f"{name}.")
    }


def require_mode(mode: Any, key: str, source: str) -> None:
    """Raises CheckpointError if there is no such mode."""
    if mode not in (None, "IDENTITY", "MEAN_STD", *RANGES):
        raise CheckpointError(
            f"{source}: {key} is normalised by {reprlib.repr(mode)}, and IDENTITY, MEAN_STD, "
            f"{', '.join(RANGES)} are read"
        )


def scale(mode: str | None, stats: Stats, key: str, width: int, eps: float, source: str) -> Scale:
    """How one feature is normalised. `source` has the statistics.

    Raises:
        MissingStats: there are no statistics for it. lerobot would pass it through as it is.
        CheckpointError: they are of another size.
        DataError: they are not finite.
    """
    if mode in (None, "IDENTITY"):
        return Identity(width=width)
    try:
        first, second = take(stats, key, RANGES.get(mode, Normalizer.names), source)
    except MissingStats as error:
        ends = [other.removesuffix("." + key) for other in stats if other.endswith("." + key)]
        sets = sorted({end.removesuffix(".buffer") for end in ends})
        offer = f", or one of the sets in it: {', '.join(sets)}" if sets else ""
        raise MissingStats(
            f"{error}. Say which belong to your robot with stats=: the folder of a LeRobot dataset, its "
            f"meta/stats.json{offer}"
        ) from None
    if (sizes := sorted({len(first), len(second)})) != [width]:
        raise CheckpointError(
            f"{key}: {width} values are needed, {source} has statistics of "
            f"{' and '.join(map(str, sizes))}: take those of data with the same robot, with stats="
        )
    if mode == "MEAN_STD":
        return Normalizer(mean=first, std=second, eps=eps)
    return RangeNormalizer(low=first, high=second, eps=eps)


def mode_of(normal: Scale, known: str | None) -> str:
    """The mode that a scale is written as; `known` decides between kinds of ranges."""
    match normal:
        case Normalizer():
            return "MEAN_STD"
        case RangeNormalizer():
            return known if known in RANGES else "MIN_MAX"
        case _:
            return "IDENTITY"
