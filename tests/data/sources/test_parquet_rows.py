"""Rows of Parquet and CSV files."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailorbird.data.sample import BadSample
from tailorbird.data.sources import parquet_rows
from tailorbird.data.sources.parquet_rows import CsvRows, ParquetRows
from tailorbird.errors import DataError

ROWS = [{"number": i, "images": [{"bytes": bytes([i]) * i, "path": None}] * (i % 3)} for i in range(11)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Groups of 4, 4 and 3 rows."""
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet", row_group_size=4)
    return tmp_path / "rows.parquet"


def test_rows_are_found_in_their_groups(path: Path) -> None:
    rows = pickle.loads(pickle.dumps(ParquetRows(path)))  # noqa: S301 (our own)
    assert [rows[i] for i in (10, 0, 3, 4, 7, 8)] == [ROWS[i] for i in (10, 0, 3, 4, 7, 8)]
    assert ParquetRows(path, ("number",))[5] == {"number": 5}


def test_a_large_group_is_streamed_up_to_the_row(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_rows, "LARGEST_GROUP", 1)
    monkeypatch.setattr(parquet_rows.HELD_GROUPS, "hold", None)  # would fail if it were asked
    started: list[int] = []
    iter_batches = pq.ParquetFile.iter_batches

    def counted(self: pq.ParquetFile, *args: Any, **options: Any) -> Any:
        started.append(1)
        return iter_batches(self, *args, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    rows = ParquetRows(path)
    assert [rows[i] for i in range(11)] == ROWS
    assert len(started) == 3, "once a group when rows are read in order"
    assert [rows[i] for i in (3, 1, 9, 10, 2, 2)] == [ROWS[i] for i in (3, 1, 9, 10, 2, 2)]
    assert len(parquet_rows.STREAMS) <= parquet_rows.MOST_STREAMS


def test_no_more_groups_are_held_than_fit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = parquet_rows._Groups()
    monkeypatch.setattr(parquet_rows, "HELD_GROUPS", groups)
    monkeypatch.setattr(parquet_rows, "HELD", 1)
    rows = ParquetRows(path)
    for i in (0, 5, 10, 1):
        assert rows[i] == ROWS[i]
        assert len(groups._tables) == 1
    monkeypatch.setattr(parquet_rows, "HELD", 1 << 20)
    assert [rows[i]["number"] for i in range(11)] == list(range(11))
    assert len(groups._tables) == 3


def test_another_file_of_the_name_is_read_anew(path: Path) -> None:
    assert ParquetRows(path)[0] == ROWS[0]
    pq.write_table(pa.Table.from_pylist(ROWS[5:]), path)
    rows = ParquetRows(path)
    assert (len(rows), rows[0]) == (6, ROWS[5])


def test_a_cut_file_a_damaged_page_and_a_missing_column_are_told_apart(path: Path) -> None:
    with pytest.raises(DataError, match=r"lacks the columns \['texts'\]: it has number, images"):
        ParquetRows(path, ("number", "texts.user"))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="is cut or damaged"):
        ParquetRows(path)
    path.write_bytes(whole[:4] + bytes(120) + whole[124:])  # pages of the first group
    rows = ParquetRows(path)
    with pytest.raises(BadSample, match=r"row 0 of .*rows.parquet is cut or damaged") as refused:
        rows[0]
    assert refused.value.reason == "damaged row"
    assert rows[10] == ROWS[10]
    with pytest.raises(DataError, match="is missing"):
        ParquetRows(path.with_name("other.parquet"))


def test_cells_of_csv_are_texts_with_line_breaks_and_commas(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('question,answer\n"How many,\nand why?",007\n"say ""x""",\n')
    rows = CsvRows(tmp_path / "a.csv")
    assert [rows[i] for i in range(len(rows))] == [
        {"question": "How many,\nand why?", "answer": "007"},
        {"question": 'say "x"', "answer": ""},
    ]
    assert rows.files == (tmp_path / "a.csv",)
    (tmp_path / "b.tsv").write_text("image\tcaption\na.png\tone, two\n")
    assert CsvRows(tmp_path / "b.tsv")[0] == {"image": "a.png", "caption": "one, two"}


@pytest.mark.parametrize(
    "content", [b"", b"a,b\n1,2,3\n", b"a,b\n\xff,2\n"], ids=["empty", "cells", "letters"]
)
def test_a_csv_that_is_none_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.csv is cut or damaged"):
        CsvRows(tmp_path / "a.csv")


READ = """
import os, sys
from pathlib import Path
from typing import Any
from tailorbird.data.sources.parquet_rows import ParquetRows
rows = ParquetRows(Path(sys.argv[1]))
assert rows[0]["number"] == 0
child = os.fork()
if child == 0:
    os._exit(0 if [rows[i]["number"] for i in range(11)] == list(range(11)) else 1)
assert [rows[10 - i]["number"] for i in range(11)] == list(range(10, -1, -1))
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_child_of_a_process_that_has_read_can_read_too(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
