"""Vript: vript_captions/*.jsonl, a line for each clip of a video, the clips in zips.

`{meta, data: {video_id, clip_id, caption: {content, shot_type, camera_movement, scene_title}, ...}}`, and
vript_{long,short}_videos_clips/*.zip with VIDEO/CLIP.mp4, as mutonix/Vript documents it; not run on the real
files.
"""

from dataclasses import dataclass
from pathlib import Path

from tailorbird.data.sources.json_rows import find_rows
from tailorbird.data.sources.media import Media
from tailorbird.data.sources.rows import Place, Row, RowSource, require_tables
from tailorbird.data.sources.turns import pairs
from tailorbird.data.sources.values import as_object, as_text
from tailorbird.processing.chat import Message

QUESTION = "Describe this clip in detail, with the type of shot and the movement of the camera."
ALSO = {"Shot": "shot_type", "Camera": "camera_movement"}  # how they are written, and the field
CLIPS = ("vript_long_videos_clips", "vript_short_videos_clips")


@dataclass(frozen=True)
class VriptRows:
    media: Media

    def __call__(self, row: Row, place: Place) -> tuple[Message, ...]:
        where = str(place)
        clip = as_object(row.get("data"), where, "data")
        caption = as_object(clip.get("caption"), where, "caption")
        lines = [as_text(caption.get("content"), where, "content")]
        lines += [f"{name}: {caption[field]}" for name, field in ALSO.items() if caption.get(field)]
        video_id, clip_id = (as_text(clip.get(key), where, key) for key in ("video_id", "clip_id"))
        shown = self.media.show(f"{video_id}/{clip_id}.mp4", kind="video")
        return pairs([(QUESTION, "\n".join(lines) if lines[0].strip() else "")], [shown], where)


def vript(name: str, root: Path) -> RowSource:
    """Raises DataError: there are no files, or none can be read."""
    tables = find_rows(root, ["vript_captions/*.jsonl"])
    return RowSource(
        name=name,
        root=root,
        tables=require_tables(tables, name, root, "vript_captions/*.jsonl"),
        read=VriptRows(Media.below(root, CLIPS)),
    )
