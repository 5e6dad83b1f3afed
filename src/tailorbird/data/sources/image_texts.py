"""Sets in the layout of The Cauldron: The Cauldron, Docmatix and FineVision.

Parquet with `images: [{bytes, path}]` and `texts: [{user, assistant, ...}]`, as their cards at
HuggingFaceM4/{the_cauldron, Docmatix, FineVision} state it; not run on the real files. The ratings of
FineVision are not read.
"""

from collections.abc import Sequence
from pathlib import Path

from tailorbird.data.sources.media import stored
from tailorbird.data.sources.parquet_rows import ParquetRows
from tailorbird.data.sources.rows import Place, Row, RowSource, require_tables, tables_of
from tailorbird.data.sources.turns import pairs
from tailorbird.data.sources.values import as_list, as_object, maybe_list
from tailorbird.processing.chat import Message

COLUMNS = ("images", "texts")


def read_image_texts(row: Row, place: Place) -> tuple[Message, ...]:
    """All questions of a row about all its pictures are one conversation."""
    where = str(place)
    shown = [stored(image, where) for image in maybe_list(row["images"], where, "images")]
    texts = [as_object(text, where, "text") for text in as_list(row["texts"], where, "texts")]
    return pairs([(text.get("user"), text.get("assistant")) for text in texts], shown, where)


def image_texts(name: str, root: Path, folders: Sequence[str]) -> RowSource:
    """folders: those of the configurations, as they lie in the root; patterns will do.

    Raises:
        DataError: there are no files, or none can be read.
    """
    files = sorted({path for folder in folders for path in root.glob(f"{folder}/*.parquet")})
    tables = tables_of(files, lambda path: ParquetRows(path, COLUMNS))
    layout = f"{' or '.join(folders)}/*.parquet"
    return RowSource(
        name=name, root=root, tables=require_tables(tables, name, root, layout), read=read_image_texts
    )
