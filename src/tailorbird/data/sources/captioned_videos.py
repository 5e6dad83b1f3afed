"""MovieChat-1K and ShareGPT4Video: descriptions of videos, in one JSON file each or in lines.

- MovieChat-1K_train: jsons/*.json with `{info: {video_path}, caption, global: [{question, answer}], ...}`,
  and raw_videos/. Its questions about single moments (`breakpoint`) are not read: nothing tells the moment to
  a model that is shown the whole.
- ShareGPT4Video: sharegpt4video_40k.jsonl with `{video_path, captions: [{idx, content}], ...}`, of which idx
  "-1" describes the whole video; videos in zip_folder/*/*.zip.

Fields as programs that read the real files use them (VLM-eval and Quicksviewer for the one, ml-energy and
others for the other); not run on the real files.
"""

from dataclasses import dataclass
from pathlib import Path

from tailorbird.data.sources.json_rows import JsonFiles, find_rows
from tailorbird.data.sources.media import Media
from tailorbird.data.sources.rows import Place, Row, RowSource, require_tables
from tailorbird.data.sources.turns import DESCRIBE_VIDEO, pairs
from tailorbird.data.sources.values import as_list, as_object, as_text, maybe_list
from tailorbird.processing.chat import Message

WHOLE = "-1"  # the index of the caption of all of a video


@dataclass(frozen=True)
class MovieRows:
    media: Media

    def __call__(self, row: Row, place: Place) -> tuple[Message, ...]:
        where = str(place)
        path = as_text(as_object(row.get("info"), where, "info").get("video_path"), where, "video_path")
        asked: list[tuple[object, object]] = [(DESCRIBE_VIDEO, row["caption"])] if row.get("caption") else []
        questions = [
            as_object(one, where, "question") for one in maybe_list(row.get("global"), where, "global")
        ]
        asked += [(one.get("question"), one.get("answer")) for one in questions]
        return pairs(asked, [self.media.show(path, kind="video")], where)


@dataclass(frozen=True)
class CaptionRows:
    media: Media

    def __call__(self, row: Row, place: Place) -> tuple[Message, ...]:
        where = str(place)
        captions = [
            as_object(one, where, "caption") for one in as_list(row.get("captions"), where, "captions")
        ]
        whole = next((one.get("content") for one in captions if str(one.get("idx")) == WHOLE), None)
        path = as_text(row.get("video_path"), where, "video_path")
        return pairs([(DESCRIBE_VIDEO, whole or "")], [self.media.show(path, kind="video")], where)


def moviechat(name: str, root: Path) -> RowSource:
    """Raises DataError: there are no files."""
    files = tuple(sorted(root.glob("jsons/*.json")))
    tables = require_tables([JsonFiles(files)] if files else [], name, root, "jsons/*.json")
    return RowSource(name=name, root=root, tables=tables, read=MovieRows(Media.below(root, ["raw_videos"])))


def sharegpt4video(name: str, root: Path) -> RowSource:
    """Raises DataError: there are no files, or none can be read."""
    tables = require_tables(
        find_rows(root, ["sharegpt4video_40k.jsonl"]), name, root, "sharegpt4video_40k.jsonl"
    )
    return RowSource(name=name, root=root, tables=tables, read=CaptionRows(Media.below(root, ["zip_folder"])))
