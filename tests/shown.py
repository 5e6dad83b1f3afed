"""Small pictures and videos that tell which they are, archives of them, and conversations made plain."""

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tailorbird.data.sample import Sample
from tailorbird.data.video import encode
from tailorbird.processing.chat import TextItem, VideoItem
from tailorbird.processing.picture import open_picture
from tailorbird.processing.video_file import VideoFile


def picture(level: int, form: str = "PNG") -> bytes:
    """5 x 7 px, all of one level."""
    file = io.BytesIO()
    Image.fromarray(np.full((5, 7, 3), level, np.uint8)).save(file, form)
    return file.getvalue()


def video(num_frames: int) -> bytes:
    """An mp4 of as many frames; 16 x 24 px."""
    levels = np.arange(num_frames, dtype=np.uint8)[:, None, None, None]
    return encode(np.broadcast_to(20 + 9 * levels, (num_frames, 16, 24, 3)), 10)


def write_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def plain(sample: Sample) -> list[Any]:
    """[[role, text, level of a picture, "frames: 3" of a video, ...], ...]; everything shown is opened."""
    return [[message.role, *map(_item, message.items)] for message in sample.messages]


def _item(item: Any) -> Any:
    if isinstance(item, TextItem):
        return item.text
    if isinstance(item, VideoItem):
        return f"frames: {VideoFile(item.source).num_frames}"
    return round(open_picture(item.source).float().mean().item())
