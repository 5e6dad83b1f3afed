"""A source made of tables: files whose rows can be read by their number."""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from tailorbird.data.sample import BadSample, Sample
from tailorbird.data.sources.kept import fingerprint
from tailorbird.errors import DataError
from tailorbird.processing.chat import Message
from tailorbird.progress import console

Row = Mapping[str, Any]


class Table(Protocol):
    """Rows by number. files: all that they are read from."""

    @property
    def files(self) -> tuple[Path, ...]: ...

    def place(self, row: int) -> tuple[Path, int]:
        """The file of a row, and its number in it."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Row: ...


@dataclass(frozen=True)
class DamagedFile:
    """Stands, as one row, for those of a file that cannot be read: nobody knows how many there were."""

    path: Path
    why: str

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def place(self, row: int) -> tuple[Path, int]:
        return self.path, row

    def __len__(self) -> int:
        return 1

    def __getitem__(self, row: int) -> Row:
        raise BadSample("damaged file", self.why)


def tables_of(files: Sequence[Path], read: Callable[[Path], Table]) -> list[Table]:
    """A table for each file. The others of a damaged one are read; it is named, and counts as a bad row.

    Raises:
        DataError: no file can be read.
    """
    tables = [_table(path, read) for path in files]
    damaged = [one for one in tables if isinstance(one, DamagedFile)]
    if damaged and len(damaged) == len(tables):
        more = f"; nor can {len(damaged) - 1} others" if len(damaged) > 1 else ""
        raise DataError(f"{damaged[0].why}{more}")
    for one in damaged:
        console.print(f"its rows are left out: {one.why}")
    return tables


def _table(path: Path, read: Callable[[Path], Table]) -> Table:
    try:
        table = read(path)
        len(table)  # files of text are indexed for it, so that errors come now
    except DataError as error:
        return DamagedFile(path, str(error))
    return table


@dataclass(frozen=True)
class Place:
    """Where a row stands: for messages, and for media that are named relative to its file.

    file: relative to the source's folder.
    """

    file: str
    row: int

    def __str__(self) -> str:
        return f"{self.file}:{self.row}"


@dataclass(frozen=True, kw_only=True)
class RowSource:
    """The rows of tables, one after the other, each read to one conversation.

    root: the folder that the names of samples are relative to. read: raises BadSample for rows that cannot be
    used. It is pickled with the source.
    """

    name: str
    root: Path
    tables: tuple[Table, ...]
    read: Callable[[Row, Place], tuple[Message, ...]]

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint((self._relative(path), path) for table in self.tables for path in table.files)

    @cached_property
    def _ends(self) -> Sequence[int]:
        return list(accumulate(len(table) for table in self.tables))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, row: int) -> Sample:
        place, values = self.row(row)
        try:
            messages = self.read(values, place)
        except BadSample as error:
            if str(error).startswith(str(place)):
                raise
            raise BadSample(error.reason, f"{place}: {error}") from None  # what is said of a medium
        return Sample(name=str(place), source=self.name, messages=messages)

    def row(self, row: int) -> tuple[Place, Row]:
        """The row before it is read, and where it stands. Raises BadSample if it is damaged."""
        if not 0 <= row < len(self):
            raise IndexError(f"{self.name} has {len(self)} rows, there is no row {row}")
        table = bisect_right(self._ends, row)
        inside = row - (self._ends[table - 1] if table else 0)
        file, number = self.tables[table].place(inside)
        place = Place(self._relative(file), number)
        try:
            return place, self.tables[table][inside]
        except OSError as error:
            raise BadSample("missing file", f"{place} cannot be read: {error}") from None

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.name


def require_tables(tables: Sequence[Table], name: str, root: Path, layout: str) -> tuple[Table, ...]:
    """Raises DataError if there are none. layout: what there should be."""
    if not tables:
        raise DataError(
            f"{root} holds nothing of {name}: there should be {layout}. Fetch it with `tailorbird data "
            f"download {name}`"
        )
    return tuple(tables)
