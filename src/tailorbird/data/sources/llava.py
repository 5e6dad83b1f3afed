"""Sets in LLaVA's layout: `[{id, image | video, conversations: [{from, value}]}]` in JSON, media in archives.

- MAmmoTH-VL-Instruct-12M: mammoth_{si_10M,ov_2M}.json of 22 and 4 GB; {single_image,multi_image,video}_data/.
- M4-Instruct-Data: m4_instruct_{annotations,video}.json and zips beside them, of which one is split.
- LLaVA-Video-178K: a folder for each duration and origin, with *cap*, *oe* and *mc*.json and tars of videos.
- VISTA-400K: a JSON file for each kind of question; a video's name stands under `image`.
- Video-STaR: ft_json/*_tune_.json; the videos are to be had elsewhere, and go in a folder for each set.

Fields as the cards and the sets' training code (LLaVA-NeXT, TIGER-AI-Lab/VISTA, smollm) have them; the paths
inside the archives are not documented and not verified, so a member is also found by the end of its path.
A video that is a folder of frames, as some of M4-Instruct's are, is not read. Not run on the real files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tailorbird.data.sources.json_rows import find_rows
from tailorbird.data.sources.media import Media, Shown
from tailorbird.data.sources.rows import Place, Row, RowSource, require_tables
from tailorbird.data.sources.turns import converse
from tailorbird.data.sources.values import as_list
from tailorbird.processing.chat import Message

SYSTEM = ("system", "system_prompt", "system_message")


@dataclass(frozen=True)
class LlavaRows:
    """Reads rows of LLaVA's layout."""

    media: Media

    def __call__(self, row: Row, place: Place) -> tuple[Message, ...]:
        system = next((row[key] for key in SYSTEM if row.get(key)), None)
        return converse(row.get("conversations"), self._shown(row, place), str(place), system)

    def _shown(self, row: Row, place: Place) -> list[Shown]:
        file = PurePosixPath(place.file)
        near = [str(file.parent), str(file.with_suffix(""))]  # a folder may be named as its file of rows
        if isinstance(row.get("data_source"), str):
            near.append(row["data_source"])
        return [
            self.media.show(name, near, kind)
            for kind in ("image", "video")
            for key in (kind, f"{kind}s")
            if row.get(key)
            for name in ([row[key]] if isinstance(row[key], str) else as_list(row[key], str(place), key))
        ]


def llava(name: str, root: Path, patterns: Sequence[str], inside: Sequence[str]) -> RowSource:
    """patterns: of the JSON files in the root. inside: folders of the root that media are named in.

    Raises:
        DataError: there are no files, or none can be read.
    """
    tables = require_tables(find_rows(root, patterns), name, root, " or ".join(patterns))
    return RowSource(name=name, root=root, tables=tables, read=LlavaRows(Media.below(root, inside)))
