"""The GGUF container: metadata, and where each tensor lies. Every length is held against the file's size.

The package `gguf` has a reader too; it trusts what a file says of itself, and takes seconds for a vocabulary.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tailorbird.errors import CheckpointError, ConfigError

MAGIC, VERSIONS, ALIGNMENT = b"GGUF", (2, 3), 32
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
MOST_DIMS = 4
AGAIN = "fetch or convert it again"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A tensor in the file. kind: its storage type, as ggml numbers them. shape: as PyTorch has it."""

    kind: int
    shape: tuple[int, ...]
    start: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class GgufFile:
    path: Path
    metadata: dict[str, Any]
    places: dict[str, Place]
    data: mmap.mmap

    def dequantise(self, name: str) -> Tensor:
        """One tensor in fp32, a copy.

        Raises:
            CheckpointError: `gguf` cannot dequantise its storage type.
        """
        gguf, place = _package(), self.places[name]
        kind = gguf.GGMLQuantizationType(place.kind)
        stored = np.frombuffer(self.data, np.uint8, place.num_bytes, place.start)
        rows = stored.reshape(*place.shape[:-1], place.num_bytes // math.prod(place.shape[:-1]))
        try:
            values = gguf.dequantize(rows, kind)
        except NotImplementedError:
            raise CheckpointError(
                f"{self.path}: {name} is stored as {kind.name}, which gguf {_version()} cannot turn into "
                "numbers: take the file in another quantisation (Q8_0, F16), or a newer gguf"
            ) from None
        return torch.from_numpy(np.array(values, np.float32))


def open_gguf(path: Path) -> GgufFile:
    """Read the header; the tensors stay on disk until they are asked for.

    Raises:
        CheckpointError: the file is missing, no GGUF, cut, or contradicts itself.
        ConfigError: the package `gguf` is not installed.
    """
    _package()
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise CheckpointError(f"{path} is no GGUF file: it does not begin with {MAGIC!r}")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): name a .gguf file") from error
    cursor = _Cursor(path, data)
    version = cursor.number("I")
    if version not in VERSIONS:
        raise CheckpointError(
            f"{path} is GGUF version {version}, little-endian {VERSIONS} can be read: convert it again"
        )
    num_tensors, num_fields = cursor.number("Q"), cursor.number("Q")
    metadata: dict[str, Any] = {}
    for _ in range(num_fields):  # bounded: each turn takes bytes, and there are only so many
        name = cursor.text()
        metadata[name] = cursor.value(cursor.number("I"))
    headers = [_header(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or alignment < 1:
        raise CheckpointError(f"{path} is damaged: its alignment is {alignment!r}. {AGAIN.capitalize()}")
    start = math.ceil(cursor.at / alignment) * alignment
    places = {name: _place(path, name, header, start, len(data)) for name, header in headers}
    if len(places) != num_tensors:
        raise CheckpointError(f"{path} is damaged: two tensors have the same name. {AGAIN.capitalize()}")
    return GgufFile(path=path, metadata=metadata, places=places, data=data)


class _Cursor:
    """Reads forward, and never past the end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, len(MAGIC)

    def numbers(self, code: str, count: int) -> tuple[Any, ...]:
        start = self.at
        self._pass(struct.calcsize(code) * count)
        return struct.unpack_from(f"<{count}{code}", self.data, start)

    def number(self, code: str) -> Any:
        return self.numbers(code, 1)[0]

    def text(self) -> str:
        num_bytes = self.number("Q")
        start = self.at
        self._pass(num_bytes)
        try:
            return self.data[start : self.at].decode("utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(
                f"{self.path} is damaged: a text is not UTF-8. {AGAIN.capitalize()}"
            ) from None

    def value(self, kind: int) -> Any:
        if kind == TEXT:
            return self.text()
        if kind == ARRAY:
            kind, count = self.number("I"), self.number("Q")
            if kind == TEXT:
                return [self.text() for _ in range(count)]
            return list(self.numbers(self._code(kind), count))
        return self.number(self._code(kind))

    def _code(self, kind: int) -> str:
        if kind not in SCALARS:
            raise CheckpointError(f"{self.path} is damaged: a value of type {kind}. {AGAIN.capitalize()}")
        return SCALARS[kind]

    def _pass(self, num_bytes: int) -> None:
        if num_bytes > len(self.data) - self.at:
            raise CheckpointError(
                f"{self.path} is cut or damaged: at byte {self.at} it announces {num_bytes} bytes, "
                f"{len(self.data) - self.at} are left. {AGAIN.capitalize()}"
            )
        self.at += num_bytes


def _header(cursor: _Cursor) -> tuple[str, tuple[tuple[int, ...], int, int]]:
    """Name, and shape, type and offset."""
    name, num_dims = cursor.text(), cursor.number("I")
    if not 1 <= num_dims <= MOST_DIMS:
        raise CheckpointError(
            f"{cursor.path} is damaged: {name} has {num_dims} dimensions. {AGAIN.capitalize()}"
        )
    shape = cursor.numbers("Q", num_dims)[::-1]  # ggml counts from the last dimension
    return name, (shape, cursor.number("I"), cursor.number("Q"))


def _place(path: Path, name: str, header: tuple[tuple[int, ...], int, int], start: int, size: int) -> Place:
    gguf, (shape, kind, offset) = _package(), header
    try:
        block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise CheckpointError(
            f"{path}: {name} is stored as type {kind}, which gguf {_version()} does not know: "
            "take the file in another quantisation (Q8_0, F16), or a newer gguf"
        ) from None
    if 0 in shape or shape[-1] % block:
        raise CheckpointError(
            f"{path} is damaged: {name} has shape {shape} in blocks of {block}. {AGAIN.capitalize()}"
        )
    num_bytes = math.prod(shape) // block * block_bytes
    if start + offset + num_bytes > size:
        raise CheckpointError(
            f"{path} is cut or damaged: {name} ends at byte {start + offset + num_bytes} of {size}. "
            f"{AGAIN.capitalize()}"
        )
    return Place(kind=kind, shape=shape, start=start + offset, num_bytes=num_bytes)


def _package() -> Any:
    """The quantisations, from the optional package."""
    try:
        import gguf
    except ImportError:
        raise ConfigError(
            "a .gguf file was asked for, and the package that unpacks one is not installed: "
            "pip install 'tailorbird[gguf]'"
        ) from None
    return gguf


def _version() -> str:
    from importlib.metadata import version

    return version("gguf")
