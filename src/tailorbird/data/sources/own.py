"""The user's own data: files of rows, or a folder of pictures and videos with texts beside them.

A row is a conversation in one of these forms, with its media under `image`, `images`, `video` or `videos`:

- messages: [{"role": "user", "content": "..." or [{"type": "image", "path": ...}, {"type": "text", ...}]}]
- conversations: [{"from": "human", "value": "<image> ..."}], as LLaVA and ShareGPT have it
- texts: [{"user": ..., "assistant": ...}], as The Cauldron has it
- question and answer, or others of PAIRS, in columns; or a caption beside its picture or video
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tailorbird.data.sample import BadSample
from tailorbird.data.sources.json_index import LINES
from tailorbird.data.sources.json_rows import LARGEST_ROW, JsonRows, load_object
from tailorbird.data.sources.media import IMAGES, VIDEOS, Media, Shown, stored
from tailorbird.data.sources.parquet_rows import CsvRows, ParquetRows
from tailorbird.data.sources.rows import Place, Row, RowSource, Table, tables_of
from tailorbird.data.sources.turns import DESCRIBE_IMAGE, DESCRIBE_VIDEO, converse, pairs
from tailorbird.data.sources.values import as_list, as_object
from tailorbird.errors import DataError
from tailorbird.processing.chat import Message, VideoItem

JSON, TABLES = (*LINES, ".json"), (".parquet", ".csv", ".tsv")
CONVERSATIONS = ("messages", "conversations", "conversation")
PAIRS = (
    ("question", "answer"),
    ("user", "assistant"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("instruction", "output"),
)
CAPTIONS = ("caption", "text", "description")
MEDIA = {  # fields, and what they hold where the name does not say
    "image": "image",
    "images": "image",
    "image_path": "image",
    "file_name": "image",
    "video": "video",
    "videos": "video",
    "video_path": "video",
}
SYSTEM = ("system", "system_prompt")


@dataclass(frozen=True)
class OwnRows:
    """Reads rows of any of the forms."""

    media: Media

    def __call__(self, row: Row, place: Place) -> tuple[Message, ...]:
        where = str(place)
        near = str(PurePosixPath(place.file).parent)
        given = {name: value for name, value in row.items() if value is not None and value != ""}
        shown = [
            self._show(value, near, where, kind)
            for name, kind in MEDIA.items()
            if name in given
            for value in _several(given[name])
        ]
        system = next((given[name] for name in SYSTEM if name in given), None)
        for name in CONVERSATIONS:
            if name in given:
                turns = as_list(_several(given[name]), where, name)
                return converse([self._found(turn, near, where) for turn in turns], shown, where, system)
        return pairs(_asked(given, shown, where), shown, where, system)

    def _show(self, value: Any, near: str, where: str, kind: str) -> Shown:
        """A medium by its name, or by its bytes in the row."""
        name = value.get("path") if isinstance(value, Mapping) and not value.get("bytes") else value
        if isinstance(name, str):
            return self.media.show(name, [near], kind)
        item = stored(value, where)
        return VideoItem(item.source) if kind == "video" else item

    def _found(self, turn: Any, near: str, where: str) -> Any:
        """A turn whose items hold media instead of their names."""
        said = turn.get("content") if isinstance(turn, Mapping) else None
        if not isinstance(said, list):
            return turn
        return {**turn, "content": [self._found_item(item, near, where) for item in said]}

    def _found_item(self, item: Any, near: str, where: str) -> Any:
        kind = item.get("type") if isinstance(item, Mapping) else None
        if kind not in ("image", "video"):
            return item
        given = next((item[key] for key in (kind, "path") if item.get(key) is not None), None)
        if given is None:
            return {"type": kind}
        return {"type": kind, kind: self._show(given, near, where, kind).source}


def _several(value: Any) -> Any:
    """A list as it is or as JSON in a cell of a table, and a list of one otherwise."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return [value]
    return value if isinstance(value, list) else [value]


def _asked(given: Row, shown: list[Shown], where: str) -> list[tuple[object, object]]:
    """Questions with their answers."""
    if "texts" in given:
        texts = [as_object(text, where, "text") for text in as_list(given["texts"], where, "texts")]
        return [(text.get("user"), text.get("assistant")) for text in texts]
    for question, answer in PAIRS:
        if question in given and answer in given:
            asked = _spoken(given[question])
            if question == "instruction" and isinstance(given.get("input"), str):
                asked = f"{asked}\n{given['input']}"
            return [(asked, _spoken(given[answer]))]
    for name in CAPTIONS:
        if name in given and shown:
            is_video = isinstance(shown[0], VideoItem)
            return [(DESCRIBE_VIDEO if is_video else DESCRIBE_IMAGE, given[name])]
    raise BadSample(
        "unknown form",
        f"{where} has {', '.join(map(str, given)) or 'nothing'}: it needs messages, conversations, question "
        "and answer, or a caption with an image or a video",
    )


def _spoken(value: object) -> object:
    """A number in words."""
    return str(value) if isinstance(value, int | float) else value


@dataclass(frozen=True)
class Captioned:
    """Pictures and videos of a folder, with a text of the same name: .txt is a caption, .json any row."""

    root: Path
    media: tuple[Path, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        beside = [file.with_suffix(suffix) for file in self.media for suffix in (".txt", ".json")]
        return (*self.media, *(file for file in beside if file.is_file()))

    def place(self, row: int) -> tuple[Path, int]:
        return self.media[row], 0

    def __len__(self) -> int:
        return len(self.media)

    def __getitem__(self, row: int) -> Row:
        file = self.media[row]
        kind = "video" if file.suffix.lower() in VIDEOS else "image"
        shown = {kind: file.relative_to(self.root).as_posix()}
        text, fields = file.with_suffix(".txt"), file.with_suffix(".json")
        if fields.is_file():
            return {**shown, **load_object(fields)}
        if not text.is_file():
            raise BadSample("no text", f"{file} has no {text.name} and no {fields.name} beside it")
        if text.stat().st_size > LARGEST_ROW:
            raise BadSample("too large", f"{text} has {text.stat().st_size:,} bytes")
        try:
            return {**shown, "caption": text.read_text(encoding="utf-8-sig")}
        except UnicodeDecodeError as error:
            raise BadSample("damaged row", f"{text} is no UTF-8: {error}") from None


def own(path: Path, media: Path | None = None) -> RowSource:
    """A file of rows, a folder of them, or a folder of pictures and videos.

    media: the folder that pictures and videos are named in, or that holds archives of them; that of the rows
        if it is None.
    Raises:
        DataError: there is nothing to read, or all of it is damaged.
    """
    root = path if path.is_dir() else path.parent
    tables = _tables(path)
    if not tables:
        files = tuple(sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGES | VIDEOS))
        tables = (Captioned(root, files),) if files else ()
    if not tables:
        raise DataError(
            f"{path} holds no rows: give a file of {', '.join((*JSON, *TABLES))}, a folder of them, or "
            "a folder of pictures and videos with a .txt or .json of the same name beside each"
        )
    found = Media.below(media or root, deep=media is not None or path.is_dir())
    return RowSource(name=path.stem, root=root, tables=tables, read=OwnRows(found))


def _tables(path: Path) -> tuple[Table, ...]:
    if path.is_file():
        return (_table(path),)
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in (*LINES, *TABLES))
    beside = {p.stem for p in path.iterdir() if p.suffix.lower() in IMAGES | VIDEOS}
    files += sorted(p for p in path.glob("*.json") if p.stem not in beside)
    return tuple(tables_of(files, _table))


def _table(path: Path) -> Table:
    suffix = path.suffix.lower()
    if suffix in JSON:
        return JsonRows(path)
    if suffix in TABLES:
        return ParquetRows(path) if suffix == ".parquet" else CsvRows(path)
    raise DataError(f"{path} is no file of rows: {', '.join((*JSON, *TABLES))} are read")
