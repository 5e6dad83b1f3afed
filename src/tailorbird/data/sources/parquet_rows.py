"""Rows of Parquet and CSV files, by groups of rows, of which few are held."""

import functools
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tailorbird.data.sample import BadSample
from tailorbird.data.sources.kept import kept
from tailorbird.errors import DataError

HELD = 1 << 28  # bytes of groups, per process
LARGEST_GROUP = 1 << 26  # bytes; what is larger is streamed up to the row that is asked for
MOST_STREAMS = 2
PIECE = 1 << 20
LARGEST_CELL_CSV = 1 << 24  # bytes of a line


@dataclass(frozen=True)
class ParquetRows:
    """A Parquet file as rows of Python values; other columns than those named are not read.

    columns: names, those of structs with their fields behind dots; () for all.
    Raises:
        DataError: the file is cut or damaged, or has not these columns.
    """

    path: Path
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise DataError(f"{self.path} is missing: fetch it again")
        with _damage(self.path):
            names = _open(self.path, _state(self.path)).schema_arrow.names
        missing = sorted({column.partition(".")[0] for column in self.columns} - set(names))
        if missing:
            raise DataError(f"{self.path} lacks the columns {missing}: it has {', '.join(names)}")

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def place(self, row: int) -> tuple[Path, int]:
        return self.path, row

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        """Of the groups, in rows."""
        meta = _open(self.path, _state(self.path)).metadata
        return np.cumsum([meta.row_group(i).num_rows for i in range(meta.num_row_groups)], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, row: int) -> dict[str, Any]:
        group = int(np.searchsorted(self._ends, row, side="right"))
        inside = row - (int(self._ends[group - 1]) if group else 0)
        try:
            with _damage(self.path):
                return self._row(group, inside)
        except DataError as error:
            raise BadSample("damaged row", f"row {row} of {error}") from None

    def _row(self, group: int, inside: int) -> dict[str, Any]:
        file = _open(self.path, _state(self.path))
        columns = list(self.columns) or None
        key = (self.path, _state(self.path), self.columns, group)
        if file.metadata.row_group(group).total_byte_size > LARGEST_GROUP:
            at, batches = STREAMS.pop(key, (inside + 1, None))
            if at > inside:  # behind us
                at = 0
                batches = file.iter_batches(1, row_groups=[group], columns=columns, use_threads=False)
            batch = next(islice(batches, inside - at, None), None)
            if batch is None:
                raise ValueError(f"its group {group} ends before row {inside}")
            STREAMS[key] = inside + 1, batches
            while len(STREAMS) > MOST_STREAMS:
                STREAMS.popitem(last=False)
            return batch.to_pylist()[0]
        table = HELD_GROUPS.find(key)
        if table is None:
            table = file.read_row_group(group, columns=columns, use_threads=False)
            HELD_GROUPS.hold(key, table)
        return table.slice(inside, 1).to_pylist()[0]


class _Groups:
    """Tables, the least recently asked for forgotten first."""

    def __init__(self) -> None:
        self._tables: OrderedDict[object, pa.Table] = OrderedDict()

    def find(self, key: object) -> Any:
        if key in self._tables:
            self._tables.move_to_end(key)
        return self._tables.get(key)

    def hold(self, key: object, table: Any) -> None:
        self._tables[key] = table
        while sum(held.nbytes for held in self._tables.values()) > HELD and len(self._tables) > 1:
            self._tables.popitem(last=False)


STREAMS: OrderedDict[object, Any] = OrderedDict()  # large groups: the next row, and the rows from there on
HELD_GROUPS = _Groups()  # of all sources of this process: together they are to stay within HELD


def _state(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns


@functools.lru_cache(maxsize=32)
def _open(path: Path, state: tuple[int, int]) -> Any:  # noqa: ARG001 (part of the key)
    """state: the file's, so that another file of the name is opened anew."""
    return pq.ParquetFile(path, pre_buffer=False, buffer_size=PIECE)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} is cut or damaged ({reason}): fetch it again") from None


@dataclass(frozen=True)
class CsvRows:
    """A CSV or TSV file with a line of names, all cells as text; its rows are kept as Parquet.

    Raises:
        DataError: lines differ in their number of cells, or it is not UTF-8.
    """

    path: Path

    def __post_init__(self) -> None:
        len(self._rows)  # made now, so that errors come now

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def place(self, row: int) -> tuple[Path, int]:
        return self.path, row

    @cached_property
    def _rows(self) -> ParquetRows:
        return ParquetRows(kept("parquet", [self.path], lambda out: _as_parquet(self.path, out)))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self._rows[row]


def _as_parquet(path: Path, out: Path) -> None:
    parse = pcsv.ParseOptions(
        delimiter="\t" if path.suffix.lower() == ".tsv" else ",", newlines_in_values=True
    )
    read = pcsv.ReadOptions(block_size=LARGEST_CELL_CSV, use_threads=False)
    with _damage(path):
        if not path.stat().st_size:
            raise ValueError("it is empty")
        with pcsv.open_csv(path, read_options=read, parse_options=parse) as file:
            names = file.schema.names
        text = pcsv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
        with (
            pcsv.open_csv(path, read_options=read, parse_options=parse, convert_options=text) as file,
            pq.ParquetWriter(out, file.schema) as writer,
        ):
            for batch in file:
                writer.write_batch(batch, row_group_size=1 << 12)
