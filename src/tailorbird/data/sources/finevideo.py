"""FineVideo: Parquet with the bytes of a video in `mp4` and what was said of it in a struct, `json`.

`json.content_metadata` holds a `description` and `qAndA: [{question, answer}]`, as the card of
HuggingFaceFV/finevideo states it; gated, not run on the real files.
"""

from pathlib import Path

from tailorbird.data.sample import BadSample
from tailorbird.data.sources.parquet_rows import ParquetRows
from tailorbird.data.sources.rows import Place, Row, RowSource, require_tables, tables_of
from tailorbird.data.sources.turns import DESCRIBE_VIDEO, pairs
from tailorbird.data.sources.values import as_object, maybe_list
from tailorbird.processing.chat import Message, VideoItem

COLUMNS = ("mp4", "json.content_metadata.description", "json.content_metadata.qAndA")


def read_finevideo(row: Row, place: Place) -> tuple[Message, ...]:
    """The description, then the questions."""
    where = str(place)
    video = row["mp4"]
    if not isinstance(video, bytes) or not video:
        raise BadSample("missing file", f"{where} has no video")
    said = as_object(as_object(row["json"], where, "json").get("content_metadata"), where, "content_metadata")
    description = said.get("description")
    asked: list[tuple[object, object]] = [(DESCRIBE_VIDEO, description)] if description else []
    questions = [as_object(one, where, "question") for one in maybe_list(said.get("qAndA"), where, "qAndA")]
    asked += [(one.get("question"), one.get("answer")) for one in questions]
    return pairs(asked, [VideoItem(video)], where)


def finevideo(name: str, root: Path) -> RowSource:
    """Raises DataError: there are no files, or none can be read."""
    tables = tables_of(sorted(root.glob("data/*.parquet")), lambda path: ParquetRows(path, COLUMNS))
    layout = require_tables(tables, name, root, "data/*.parquet")
    return RowSource(name=name, root=root, tables=layout, read=read_finevideo)
