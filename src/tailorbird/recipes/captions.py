"""Captions for a folder of pictures and videos, one JSON line each, to be stopped and continued at will."""

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailorbird.errors import ConfigError, DataError
from tailorbird.infer.chat import ChatModel
from tailorbird.infer.config import Sampling
from tailorbird.progress import console, track
from tailorbird.storage import explained, locked

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
VIDEOS = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"}


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """Files by what became of them."""

    new: int
    before: int  # captioned by an earlier run
    refused: tuple[str, ...]  # why, one message a file


def find_media(paths: Iterable[Path]) -> list[Path]:
    """Files as given, and the pictures and videos of folders, sorted, each once.

    Raises:
        DataError: a path does not exist, or there is nothing.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} does not exist: name pictures, videos, or folders of them")
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in inside:
            if file == path or (file.is_file() and file.suffix.lower() in PICTURES | VIDEOS):
                found[file] = None
    if not found:
        raise DataError(f"no picture or video in {', '.join(map(str, paths))}")
    return list(found)


def caption(
    model: ChatModel, files: Sequence[Path], out: Path, *, name: str, question: str, sampling: Sampling
) -> Captioned:
    """Append a line to `out` for every file that has none, with the caption and what was asked of whom.

    Lines reach the disk one by one. A file that cannot be read is reported and gets no line, so the next run
    tries it again.

    Raises:
        ConfigError: `out` holds captions by another model or for another question.
        StorageError: the disk is full, or another process captions into the same file.
    """
    refused: list[str] = []
    asked = {"model": name, "question": question}
    with locked(out.parent), explained(out):
        done = _read_done(out, asked)
        todo = [file for file in files if str(file) not in done]
        with (
            out.open("a", encoding="utf-8") as lines,
            track("captions", len(files), len(files) - len(todo)) as bar,
        ):
            for file in todo:
                began = time.perf_counter()
                try:
                    answer = model.chat(look_at([file], question), sampling)
                except DataError as error:
                    refused.append(str(error))
                    console.print(f"left out: {error}")
                    bar.advance()
                    continue
                record = {
                    "file": str(file),
                    "caption": answer.text.strip(),
                    "reason": answer.reason,
                    "tokens": len(answer.ids),
                    "seconds": round(time.perf_counter() - began, 3),
                    **asked,
                }
                lines.write(json.dumps(record, ensure_ascii=False) + "\n")
                lines.flush()
                os.fsync(lines.fileno())
                bar.advance(note=file.name)
    return Captioned(new=len(todo) - len(refused), before=len(files) - len(todo), refused=tuple(refused))


def look_at(files: Sequence[Path], question: str) -> list[dict[str, Any]]:
    """One message of the user: the pictures and videos, then the question."""
    media = [
        {"type": "video" if file.suffix.lower() in VIDEOS else "image", "path": str(file)} for file in files
    ]
    return [{"role": "user", "content": [*media, {"type": "text", "text": question}]}]


def _read_done(out: Path, asked: dict[str, str]) -> set[str]:
    """Files that have their line. A last line that a killed process cut short is taken away."""
    if not out.exists():
        return set()
    content = out.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(out, len(whole))
    done = set()
    for number, record in enumerate(_records(whole, out), start=1):
        before = {key: record.get(key) for key in asked}
        if before != asked:
            raise ConfigError(f"{out}, line {number}, answers {before}, not {asked}: choose another --out")
        done.add(str(record["file"]))
    return done


def _records(content: bytes, out: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            record = json.loads(line)
            record["file"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{out}, line {number}, is no caption: repair it, or choose another --out"
            ) from error
        yield record
