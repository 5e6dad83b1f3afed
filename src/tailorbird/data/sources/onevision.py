"""LLaVA-OneVision-Data: Parquet with `id, image: {bytes, path}, conversations: [{from, value}], data_source`.

As the card of lmms-lab/LLaVA-OneVision-Data states it; not run on the real files. `image` is null in rows of
text, and `<image>` marks its place.
"""

from collections.abc import Sequence
from pathlib import Path

from tailorbird.data.sources.media import stored
from tailorbird.data.sources.parquet_rows import ParquetRows
from tailorbird.data.sources.rows import Place, Row, RowSource, require_tables, tables_of
from tailorbird.data.sources.turns import converse
from tailorbird.processing.chat import Message

COLUMNS = ("image", "conversations")


def read_onevision(row: Row, place: Place) -> tuple[Message, ...]:
    shown = [] if row["image"] is None else [stored(row["image"], str(place))]
    return converse(row["conversations"], shown, str(place))


def onevision(name: str, root: Path, folders: Sequence[str]) -> RowSource:
    """Raises DataError: there are no files, or none can be read."""
    files = sorted({path for folder in folders for path in root.glob(f"{folder}/*.parquet")})
    tables = tables_of(files, lambda path: ParquetRows(path, COLUMNS))
    return RowSource(
        name=name,
        root=root,
        tables=require_tables(tables, name, root, f"{' or '.join(folders)}/*.parquet"),
        read=read_onevision,
    )
