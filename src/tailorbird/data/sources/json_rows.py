"""Rows of JSON files, read by the place where they lie."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tailorbird.data.sample import BadSample
from tailorbird.data.sources.json_index import write_index
from tailorbird.data.sources.kept import kept
from tailorbird.data.sources.rows import Row, Table, tables_of

LARGEST_ROW = 1 << 26  # bytes
PAIR = 16  # bytes in the index


@dataclass(frozen=True)
class JsonRows:
    """The lines of a file, or the objects of its one array; nothing of it is held in memory.

    Raises:
        DataError: see `write_index`.
    """

    path: Path

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def place(self, row: int) -> tuple[Path, int]:
        return self.path, row

    @cached_property
    def _index(self) -> Path:
        return kept("rows", [self.path], lambda out: write_index(self.path, out))

    @cached_property
    def _length(self) -> int:
        return self._index.stat().st_size // PAIR

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> Row:
        with self._index.open("rb") as index:
            index.seek(PAIR * row)
            pair = index.read(PAIR)
        begin, end = (int.from_bytes(part, "little") for part in (pair[:8], pair[8:]))
        if end - begin > LARGEST_ROW:
            raise BadSample("too large", f"{self.path}, row {row} has {end - begin:,} bytes of text")
        with self.path.open("rb") as file:
            file.seek(begin)
            return parse_object(file.read(end - begin), f"{self.path}, row {row}")


@dataclass(frozen=True)
class JsonFiles:
    """Files of one object each."""

    files: tuple[Path, ...]

    def place(self, row: int) -> tuple[Path, int]:
        return self.files[row], 0

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> Row:
        return load_object(self.files[row])


def load_object(path: Path) -> Row:
    if path.stat().st_size > LARGEST_ROW:
        raise BadSample("too large", f"{path} has {path.stat().st_size:,} bytes of text")
    return parse_object(path.read_bytes(), str(path))


def parse_object(text: bytes, where: str) -> Row:
    try:
        found = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a nesting without end
        raise BadSample("damaged row", f"{where} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise BadSample("damaged row", f"{where} is no object but a {type(found).__name__}")
    return found


def find_rows(root: Path, patterns: Sequence[str]) -> list[Table]:
    """The files that match, in order of their names."""
    return tables_of(sorted({p for pattern in patterns for p in root.glob(pattern)}), JsonRows)
