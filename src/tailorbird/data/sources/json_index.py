"""Where the rows of a JSON file lie: its lines, or the objects of one array, found without parsing them.

A file of 20 GB is one array in some published sets. Here it is read once, a piece at a time: quotes and
brackets are found by NumPy, and what lies between two quotes does not count.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from tailorbird.errors import DataError

PIECE = 1 << 20  # bytes
LONGEST_LINE = 1 << 26  # bytes
WHITE = b" \t\r\n"
LINES = (".jsonl", ".ndjson")
QUOTE, BACKSLASH, NEWLINE = b'"\\\n'
Spans = NDArray[np.int64]  # (n, 2): begin and end in bytes


def _marking(letters: bytes) -> NDArray[np.bool_]:
    found = np.zeros(256, np.bool_)
    found[list(letters)] = True
    return found


MARKS, BETWEEN = _marking(b'"\\{}[]'), _marking(WHITE + b",")
STEP = np.zeros(256, np.int64)
STEP[list(b"{[")], STEP[list(b"}]")] = 1, -1


def write_index(path: Path, out: Path) -> None:
    """Write begin and end of each row as pairs of int64.

    Raises:
        DataError: the file is no array of objects and no lines, or it is cut.
    """
    with path.open("rb") as file, out.open("wb") as index:
        start = _first(file)
        file.seek(start)
        are_lines = path.suffix.lower() in LINES or _begins_with_a_line(file, path)
        file.seek(start)
        for spans in _lines(file, start) if are_lines else _objects(file, start, path):
            spans.tofile(index)
        if not index.tell():
            raise DataError(f"{path} holds no rows: it must be an array of objects, or one object a line")


def _first(file: BinaryIO) -> int:
    """Position of the first byte that is not white, behind a byte order mark."""
    at = 3 if file.read(3) == b"\xef\xbb\xbf" else 0
    file.seek(at)
    while piece := file.read(PIECE):
        if text := piece.lstrip(WHITE):
            return at + len(piece) - len(text)
        at += len(piece)
    return at


def _begins_with_a_line(file: BinaryIO, path: Path) -> bool:
    """Whether it does with an object in a line of its own, rather than with an array."""
    first = file.read(1)
    if first in (b"[", b""):
        return not first
    is_object = first == b"{" and file.readline(LONGEST_LINE).rstrip(WHITE).endswith(b"}")
    _require(is_object, f"{path} begins with neither an array nor a line that is an object", 0)
    return True


def _lines(file: BinaryIO, at: int) -> Iterator[Spans]:
    """Lines that are not blank."""
    begin = at
    while piece := file.read(PIECE):
        ends = at + np.flatnonzero(np.frombuffer(piece, np.uint8) == NEWLINE)
        if len(ends):
            begins = np.concatenate([[begin], ends[:-1] + 1])
            yield _not_blank(np.stack([begins, ends], axis=1))
            begin = int(ends[-1]) + 1
        at += len(piece)
    yield _not_blank(np.array([[begin, at]], np.int64))


def _not_blank(spans: Spans) -> Spans:
    return spans[spans[:, 1] - spans[:, 0] > 1]  # one byte is the return of a blank line


def _objects(file: BinaryIO, at: int, path: Path) -> Iterator[Spans]:
    """The elements of the outermost array.

    Borders alternate: the beginning of the array or the end of an element, then the beginning of the next
    element or the end of the array.
    """
    depth, in_string, found = 0, False, 0
    borders = np.zeros(0, np.int64)  # that the next piece goes on from; the first is one of the former
    while not (len(borders) and depth == 0) and (piece := _piece(file, path)):
        letters = np.frombuffer(piece, np.uint8)
        places = np.flatnonzero(MARKS[letters])
        quotes = _quotes(letters, places)
        in_front = np.cumsum(quotes) - quotes + in_string  # quotes left of each mark
        in_string = bool((quotes.sum() + in_string) % 2)
        places = places[(in_front % 2 == 0) & (STEP[letters[places]] != 0)]
        after = depth + np.cumsum(STEP[letters[places]])
        if (ends := np.flatnonzero(after <= 0)).size:  # of the array
            places, after = places[: ends[0] + 1], after[: ends[0] + 1]
            _require(not piece[places[-1] + 1 :].strip(WHITE), f"{path} goes on behind its array", found)
        depth = int(after[-1]) if len(after) else depth
        is_border = (after == 1) | (after == 0) | ((after == 2) & (STEP[letters[places]] == 1))
        borders = np.concatenate([borders, at + places[is_border] + (after[is_border] == 1)])
        _require(_only_commas(letters, borders - at), f"{path} has an element that is no object", found)
        num = max(0, len(borders) - 1) // 2
        yield np.stack([borders[1::2][:num], borders[2::2]], axis=1)
        found += num
        borders = borders[2 * num :]
        at += len(piece)
    _require(depth == 0 and len(borders) > 0, f"{path} is cut or damaged", found)
    while piece := file.read(PIECE):
        _require(not piece.strip(WHITE), f"{path} goes on behind its array", found)


def _require(holds: bool, otherwise: str, found: int) -> None:
    if not holds:
        raise DataError(
            f"{otherwise}, after {found} rows: it must be one array of objects, or one object a line. Fetch "
            "or write it again"
        )


def _piece(file: BinaryIO, path: Path) -> bytes:
    """The next bytes; the last one is no backslash, so that no escape is torn."""
    piece = file.read(PIECE)
    while piece.endswith(b"\\") and (more := file.read(PIECE // 16)):
        piece += more
        _require(len(piece) < 8 * PIECE, f"{path} is damaged", 0)
    return piece


def _quotes(letters: NDArray[np.uint8], places: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which marks are quotes that no backslash takes its meaning: behind an even number of them."""
    is_quote, is_backslash = letters[places] == QUOTE, letters[places] == BACKSLASH
    follows = np.zeros(len(places), np.bool_)  # a backslash, directly
    follows[1:] = is_backslash[:-1] & (places[1:] == places[:-1] + 1)
    number = np.arange(len(places))
    first = np.maximum.accumulate(np.where(is_backslash & ~follows, number, 0))  # of the run of backslashes
    return is_quote & ~(follows & ((number - first) % 2 == 1))


def _only_commas(letters: NDArray[np.uint8], borders: NDArray[np.int64]) -> bool:
    """Whether nothing else and no letters stand between elements, as far as this piece goes."""
    begins, ends = borders[0::2], borders[1::2]
    if len(begins) > len(ends):
        ends = np.append(ends, len(letters))
    begins = np.clip(begins, 0, len(letters))
    lengths = np.maximum(ends - begins, 0)
    starts = np.cumsum(lengths) - lengths
    between = np.arange(lengths.sum()) + np.repeat(begins - starts, lengths)
    return bool(BETWEEN[letters[between]].all())
