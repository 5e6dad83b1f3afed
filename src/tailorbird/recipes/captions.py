"""Captions for a folder of pictures and videos, one JSON line each, to be stopped and continued at will."""

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailorbird.data.sources.media import IMAGES, VIDEOS
from tailorbird.errors import ConfigError, DataError
from tailorbird.infer.chat import ChatModel, ask
from tailorbird.infer.config import Sampling
from tailorbird.model.lm import LM
from tailorbird.progress import console, track
from tailorbird.storage import explained, hold

BEGINNING = b'{"file": '  # of every line


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """Files by what became of them."""

    new: int
    before: int  # captioned by an earlier run
    refused: tuple[str, ...]  # why, one message a file


def find_media(paths: Iterable[Path]) -> list[Path]:
    """Files as given, and pictures and videos of folders, sorted, each once. Other files are counted aloud.

    Raises:
        DataError: a path does not exist, or there is nothing.
    """
    found: dict[Path, None] = {}
    others: Counter[str] = Counter()
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} does not exist: name pictures, videos, or folders of them")
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file == path or (file.is_file() and file.suffix.lower() in IMAGES | VIDEOS):
                found[file] = None
            elif file.is_file():
                others[file.suffix or "no suffix"] += 1
    if not found:
        raise DataError(f"no picture or video in {', '.join(map(str, paths))}")
    if others:
        console.print("not looked at: " + ", ".join(f"{num} {kind}" for kind, num in others.most_common()))
    return list(found)


def caption(
    model: ChatModel,
    files: Sequence[Path],
    out: Path,
    *,
    question: str,
    sampling: Sampling,
    asked: Mapping[str, Any],
) -> Captioned:
    """Append a line for every file that has none: file, caption, reason, tokens, seconds, and `asked`.

    Lines reach the disk one by one. A file that cannot be read is reported and gets no line, so the next run
    tries it again. `asked` is what all lines of a file have in common, such as the model's name.

    Raises:
        ConfigError: `out` holds lines with another `asked`, or the model sees nothing.
        DataError: `out` holds something else.
        StorageError: the disk is full, or another process captions into the same file.
    """
    if isinstance(model.model, LM):
        raise ConfigError("this is a language model, which sees nothing: name a vision-language model")
    refused: list[str] = []
    out.parent.mkdir(parents=True, exist_ok=True)
    with explained(out), out.open("a", encoding="utf-8") as lines:
        hold(lines, f"another process captions into {out}: wait for it, or choose another --out")
        done = _read_done(out, dict(asked))
        todo = [file for file in files if file.resolve() not in done]
        with track("captions", len(files), len(files) - len(todo)) as bar:
            for file in todo:
                began = time.perf_counter()
                shown = {"videos" if file.suffix.lower() in VIDEOS else "images": [file]}
                try:
                    answer = model.chat(ask(question, **shown), sampling)
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
                lines.write(json.dumps(record) + "\n")  # ASCII: file names need not be valid text
                lines.flush()
                os.fsync(lines.fileno())
                bar.advance(note=file.name)
    return Captioned(new=len(todo) - len(refused), before=len(files) - len(todo), refused=tuple(refused))


def _read_done(out: Path, asked: dict[str, Any]) -> set[Path]:
    """Files that have their line. A last line that a killed process cut short is taken away."""
    content = out.read_bytes()
    whole, _, rest = content.rpartition(b"\n")
    done = set()
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            record = json.loads(line)
            done.add(Path(record["file"]).resolve())
            before = {key: record.get(key) for key in asked}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{out}, line {number}, is no caption: choose another --out") from error
        if before != asked:
            raise ConfigError(f"{out}, line {number}, answers {before}, not {asked}: choose another --out")
    if rest:
        if not (rest.startswith(BEGINNING) or BEGINNING.startswith(rest)):
            raise DataError(f"{out} ends in something that is no caption: choose another --out")
        os.truncate(out, len(content) - len(rest))
    return done
