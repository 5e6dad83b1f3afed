"""Released weights into a model, without a second copy of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tailorbird.checkpoint.files import Stored, TensorReader, require_fit
from tailorbird.checkpoint.table import Rule, differing, plan
from tailorbird.errors import CheckpointError, ConfigError

M = TypeVar("M", bound=nn.Module)
SAVED_WITH = "Use the config.json that was saved with it"


class _WithoutDraws(TorchFunctionMode):
    """Weights that come from a file are not drawn first.

    On the meta device, the draw of nn.Embedding would import PyTorch's compiler.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return kwargs["tensor"] if func is nn.init.normal_ else func(*args, **kwargs)


@contextmanager
def without_weights() -> Iterator[None]:
    """What is built inside lies on the meta device: it has shapes, and takes no memory."""
    with torch.device("meta"), _WithoutDraws():
        yield


def on_meta(build: Callable[[], M], num_layers: int, tensors: Sized, source: Path) -> M:
    """Build a model on the meta device, unless its sizes are such that this would take for ever or fail.

    Args:
        num_layers: of the model, all towers together.
        tensors: those in the file `source`; every layer has one at least.
    Raises:
        CheckpointError: the configuration cannot belong to the file.
    """
    if num_layers > len(tensors):
        raise CheckpointError(
            f"{source} has {len(tensors)} tensors, too few for the {num_layers} layers of the configuration. "
            f"{SAVED_WITH}"
        )
    try:
        with without_weights():
            return build()
    except (RuntimeError, OverflowError, TypeError) as error:  # sizes that do not fit into 64 bits
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{source}: no model has such sizes ({reason}). {SAVED_WITH}") from error


def fill(
    model: nn.Module,
    source: Path,
    stored: Mapping[str, Stored],
    rules: Iterable[Rule],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | Mapping[str, torch.dtype] | None = None,
) -> None:
    """Give a model on the meta device the weights that `rules` make of `stored`, converted as they are read.

    Args:
        source: the file or index that the tensors are listed in, for errors.
        stored: all of them that have a rule.
        dtype: of all weights, or of each by its name in the model; None is that of the file, if it has only
            one.
    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape; or a file is damaged.
        ConfigError: the dtype is no float.
    """
    if isinstance(dtype, torch.dtype) and not dtype.is_floating_point:
        raise ConfigError(f"weights cannot be loaded as {dtype}: name a float, such as torch.bfloat16")
    shapes, reader = {key: one.shape for key, one in stored.items()}, TensorReader(stored)
    try:
        settled = plan(shapes, rules)
        for rule in settled.repeats:
            if not reader.are_equal(rule.theirs[0], str(rule.repeats)):
                raise differing(rule)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}. {SAVED_WITH}") from error
    needed = settled.shapes(shapes)
    require_fit(model, needed, source)
    if dtype is None:
        dtypes = {stored[key].dtype for rule in settled.kept.values() for key in rule.theirs}
        if len(dtypes) > 1:
            raise CheckpointError(
                f"{source} mixes {', '.join(sorted(map(str, dtypes)))}: say which dtype to load"
            )
        (dtype,) = dtypes
    weights: dict[str, Tensor] = {}
    for name, rule in settled.kept.items():
        kind = dtype[name] if isinstance(dtype, Mapping) else dtype
        weights[name] = torch.empty(needed[name], dtype=kind, device=device)
        parts = weights[name].split(rule.rows) if rule.rows else [weights[name]]
        for key, part in zip(rule.theirs, parts, strict=True):
            reader.copy(key, part)
    model.load_state_dict(weights, assign=True)
