"""Rows of JSON, by the place where they lie."""

import json
import os
import pickle
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from tailorbird.data.sample import BadSample
from tailorbird.data.sources import json_index, json_rows
from tailorbird.data.sources.json_rows import JsonRows
from tailorbird.errors import DataError

TEXTS = [
    'a"b',
    "\\",
    '\\\\"',
    "{[",
    "\u00e9\u4e2d\U0001f600",
    '"]}',
    'x\\\\\\"y',
    "",
    ",null,",
    "\\\\",
    "\n\t",
]


def thing(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.random()
    if kind < 0.4 or depth > 3:
        return rng.choice(TEXTS)
    if kind < 0.6:
        return [thing(rng, depth + 1) for _ in range(rng.randrange(3))]
    if kind < 0.7:
        return rng.random()
    return {rng.choice(TEXTS): thing(rng, depth + 1) for _ in range(rng.randrange(3))}


@pytest.mark.parametrize("seed", range(40))
def test_an_array_is_read_as_a_parser_reads_it_wherever_the_pieces_end(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(json_index, "PIECE", rng.choice([16, 17, 33, 64, 1000]))
    rows = [{"value": thing(rng), "number": i} for i in range(rng.randrange(1, 12))] + [{}] * rng.randrange(2)
    text = json.dumps(rows, indent=rng.choice([None, 1, 4]), ensure_ascii=rng.random() < 0.5)
    path = tmp_path / "rows.json"
    path.write_text(rng.choice(["", "\n  ", "\ufeff"]) + text + rng.choice(["", " \n\n"]))
    found = JsonRows(path)
    assert [found[i] for i in range(len(found))] == rows


@pytest.mark.parametrize("seed", range(10))
def test_lines_are_read_as_a_parser_reads_them(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(json_index, "PIECE", rng.choice([16, 33, 1000]))
    rows = [{"value": thing(rng), "number": i} for i in range(rng.randrange(1, 12))]
    path = tmp_path / "rows.jsonl"
    end = rng.choice(["\n", "\r\n", "\n\n"])
    path.write_text(
        end.join(json.dumps(row, ensure_ascii=False) for row in rows) + rng.choice(["", end]), newline=""
    )
    found = JsonRows(path)
    assert [found[i] for i in range(len(found))] == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"a": 1}, {"a": 2}', "is cut or damaged, after 2 rows"),
        (b'[{"a": 1}, {"a": "2', "is cut or damaged, after 1 rows"),
        (b"[", "is cut or damaged, after 0 rows"),
        (b'[{"a": 1}, null, {"a": 2}]', "has an element that is no object"),
        (b'[{"a": 1}, "b"]', "has an element that is no object"),
        (b"[1, 2]", "has an element that is no object"),
        (b'[{"a": 1}] [', "goes on behind its array"),
        (b'[{"a": 1}]\n' + b" " * 70 + b"{}", "goes on behind its array"),
        (b'[{"a": "' + b"\\" * 9000 + b'"}]', "is damaged"),
        (b'{\n  "a": 1\n}', "begins with neither an array nor a line that is an object"),
        (b"hello\n", "begins with neither an array nor a line that is an object"),
        (b"[]", "holds no rows"),
        (b" \n", "holds no rows"),
        (b"", "holds no rows"),
    ],
)
def test_a_file_that_is_no_array_of_objects_is_refused_by_name(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_index, "PIECE", 64)
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as refused:
        len(JsonRows(path))
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": 1,}', "damaged row"),
        (b'{"a": "\xff"}', "damaged row"),
        (b"[1, 2]", "damaged row"),
        (b"[" * 100_000, "damaged row"),
        (b'{"a": ' + b"1" * 300 + b"}", "too large"),
    ],
)
def test_a_damaged_line_is_one_bad_sample_among_good_ones(
    line: bytes, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason == "too large":
        monkeypatch.setattr(json_rows, "LARGEST_ROW", 200)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 0}\n' + line + b'\n{"a": 2}\n')
    rows = JsonRows(path)
    assert len(rows) == 3
    assert (rows[0], rows[2]) == ({"a": 0}, {"a": 2})
    with pytest.raises(BadSample) as refused:
        rows[1]
    assert refused.value.reason == reason


def test_the_index_is_made_once_and_again_when_the_file_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    first = JsonRows(path)
    assert len(first) == 2
    made = {file: file.stat().st_mtime_ns for file in cache.iterdir()}
    monkeypatch.setattr(json_rows, "write_index", None)  # would fail if it were asked
    again = pickle.loads(pickle.dumps(JsonRows(path)))  # noqa: S301 (our own)
    assert [again[i] for i in range(2)] == [{"a": 1}, {"a": 2}]
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent))
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": 3}\n')
    assert len(JsonRows(path)) == 3
    assert {file: file.stat().st_mtime_ns for file in made} == made
    os.utime(path, ns=(1, 1))
    assert len(JsonRows(path)) == 3
    assert len(list(cache.iterdir())) == 3


def test_an_array_of_50_mb_opens_within_a_few_mb(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    with path.open("w") as file:
        rows = (json.dumps({"id": i, "said": '[{\\"' + "x" * 5000}) for i in range(10_000))
        file.write("[" + next(rows))
        file.writelines(f", {row}" for row in rows)  # all in one line
        file.write("]")
    assert path.stat().st_size > 50e6
    tracemalloc.start()
    try:
        found = JsonRows(path)
        assert (len(found), found[9_999]["id"]) == (10_000, 9_999)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8e6
