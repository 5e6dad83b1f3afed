"""Safetensors: whole files, shards with an index, and tensors read a window at a time."""

import os
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tailorbird.errors import CheckpointError, DataError
from tailorbird.storage import read_json, write_json

T = TypeVar("T")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
WINDOW = 8 << 20  # bytes of a file that are mapped at a time: pages that were read count as ours until then
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INT8 = {"I8": torch.int8}
AGAIN = "save or fetch the checkpoint again"


def read_tensors(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    return _explained(path, lambda: load_file(path, device=device))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file. Where the disk refuses, the error is the system's own, with its number."""
    path.touch()  # with the mode that the umask says: the library's own is for nobody else to read
    mode = path.stat().st_mode
    try:
        save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata)
        path.chmod(mode)
    except SafetensorError as error:  # the library keeps the number in the text only
        refusal = re.search(r"(?:os error|code:) (\d+)", str(error))
        if refusal is None:
            raise
        number = int(refusal[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Give a model, possibly on the meta device, exactly these weights.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape.
    """
    require_fit(model, {name: tuple(value.shape) for name, value in weights.items()}, source)
    on_meta = any(value.is_meta for value in model.state_dict().values())
    if on_meta:  # sums round by alignment, and a mapped file has none: act as the model that was saved
        weights = {name: value.clone() if value.data_ptr() % 64 else value for name, value in weights.items()}
    model.load_state_dict(dict(weights), assign=on_meta)


def require_fit(model: nn.Module, found: Mapping[str, tuple[int, ...]], source: Path) -> None:
    """Raises CheckpointError unless the model has tensors of these names and shapes."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if expected.keys() != found.keys():
        missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
        raise CheckpointError(
            f"{source} lacks {len(missing)} tensors {missing[:3]} and has {len(unknown)} unknown ones "
            f"{unknown[:3]}: it belongs to a model of another size or kind"
        )
    for name, shape in expected.items():
        if shape != found[name]:
            raise CheckpointError(
                f"{source}: {name} has shape {found[name]}, the model needs {shape}: it belongs to a model "
                "of another size. Use the config.json that was saved with it"
            )


@dataclass(frozen=True)
class Stored:
    """A tensor that is still in its file."""

    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


def find_weights(folder: Path) -> Path:
    """The file that holds a folder's tensors, or else the index of its shards: in the reference's order.

    Raises:
        CheckpointError: there is neither.
    """
    for name in (SINGLE, INDEX):
        if (folder / name).exists():
            return folder / name
    pickles = sorted(path.name for kind in ("bin", "pt", "pth", "ckpt") for path in folder.glob(f"*.{kind}"))
    if pickles:
        raise CheckpointError(
            f"{folder} has its weights in {pickles[0]}, a pickle, which can run any program and is not read. "
            "If you trust it, load it once with the library that wrote it and save it as safetensors"
        )
    raise CheckpointError(f"{folder} has no weights: {SINGLE} and {INDEX} are missing, {AGAIN}")


def list_tensors(source: Path, kinds: Mapping[str, torch.dtype] = FLOATS) -> dict[str, Stored]:
    """All tensors of one safetensors file, or of the shards that an index names.

    kinds: those that may be there.

    Raises:
        CheckpointError: a file is missing, damaged, not where the index says, or holds other kinds.
    """
    if source.suffix != ".json":
        return _list_file(source, kinds)
    try:
        index: dict[str, str] = read_json(source)["weight_map"].copy()
        names = list(index.values())
    except (DataError, OSError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{source} is no index of shards ({error}): {AGAIN}") from None
    for name in names:  # it comes from strangers: a shard lies beside its index
        if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name):
            raise CheckpointError(
                f"{source} names the shard {reprlib.repr(name)}, which is no file beside it: {AGAIN}"
            )
    found: dict[str, Stored] = {}
    for name in sorted(set(names)):
        shard = _list_file(source.parent / name, kinds)
        named = {key for key, place in index.items() if place == name}
        absent, extra = sorted(named - shard.keys()), sorted(shard.keys() - named)
        if absent or extra:
            raise CheckpointError(
                f"{source.parent / name} lacks {len(absent)} tensors {absent[:3]} and has {len(extra)} more "
                f"{extra[:3]} than {source.name} says: {AGAIN}"
            )
        found |= shard
    return found


class TensorReader:
    """Copies tensors out of files so that little of them is mapped into memory at any time.

    A page of a mapped file counts as memory of the process from its first touch until the file is closed.
    """

    def __init__(self, stored: Mapping[str, Stored]) -> None:
        self.stored = stored
        self._path: Path | None = None
        self._file: Any = None
        self._read = 0

    def rows(self, key: str) -> Iterator[tuple[int, Tensor]]:
        """Yield a tensor in blocks: the row where a block begins, and its rows. Copy them before the next."""
        where = self.stored[key]
        if not where.shape:
            yield 0, self._open(where).get_tensor(key)
            return
        row_bytes = max(1, where.dtype.itemsize * torch.Size(where.shape[1:]).numel())
        step = max(1, WINDOW // row_bytes)
        for start in range(0, where.shape[0], step):
            stop = min(start + step, where.shape[0])
            part = self._open(where).get_slice(key)
            yield start, part[start:stop]
            self._read += (stop - start) * row_bytes

    def copy(self, key: str, into: Tensor) -> None:
        """Fill a tensor of the same shape, on any device and of any dtype."""
        for start, block in self.rows(key):
            (into[start : start + len(block)] if block.dim() else into).copy_(block)

    def are_equal(self, one: str, other: str) -> bool:
        """Whether two tensors of one shape hold the same values."""
        blocks = zip(self.rows(one), self.rows(other), strict=False)
        same_blocks = self.stored[one].dtype == self.stored[other].dtype
        return same_blocks and all(torch.equal(a, b) for (_, a), (_, b) in blocks)

    def _open(self, where: Stored) -> Any:
        if self._path != where.path or self._read >= WINDOW:
            self._file = None  # closes the old file
            self._file = _explained(where.path, lambda: safe_open(where.path, framework="pt"))
            self._path, self._read = where.path, 0
        return self._file


def write_shards(folder: Path, tensors: Mapping[str, Tensor], shard_bytes: int) -> None:
    """Write model.safetensors, or shards and an index. Only a single larger tensor exceeds `shard_bytes`."""
    shards: list[dict[str, Tensor]] = [{}]
    size = total = 0
    for key, value in tensors.items():
        if shards[-1] and size + value.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][key] = value
        size += value.nbytes
        total += value.nbytes
    metadata = {"format": "pt"}  # without it transformers refuses the file
    if len(shards) == 1:
        write_tensors(folder / SINGLE, shards[0], metadata)
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(folder / name, shard, metadata)
        places |= dict.fromkeys(shard, name)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _list_file(path: Path, kinds: Mapping[str, torch.dtype]) -> dict[str, Stored]:
    def read() -> dict[str, tuple[list[int], str]]:
        with safe_open(path, framework="pt") as file:
            parts = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
            return {key: (part.get_shape(), part.get_dtype()) for key, part in parts.items()}

    found = _explained(path, read)
    if other := sorted(f"{key} ({kind})" for key, (_, kind) in found.items() if kind not in kinds):
        raise CheckpointError(
            f"{path} has {len(other)} tensors that are not {', '.join(kinds)}, first: {other[0]}. Quantised "
            "weights are not read: use the checkpoint that they were made from"
        )
    return {key: Stored(path, tuple(shape), kinds[kind]) for key, (shape, kind) in found.items()}


def _explained(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: {AGAIN}") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): {AGAIN}") from error
