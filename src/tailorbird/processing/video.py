"""Which frames of a video SmolVLM2 sees, and the words around them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tailorbird.errors import ConfigError, DataError
from tailorbird.processing.picture import open_picture
from tailorbird.processing.video_file import Decoder, VideoFile

SKIPPED_S = 1  # at both ends of a video that has more to show than is sampled
MOST_FRAMES = 999  # as far as the words go
TO_NINETEEN = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
OUTRO = "\n\n"


@dataclass(frozen=True, kw_only=True)
class VideoSpec:
    """Sampling and size of frames. Defaults are SmolVLM2 256M and 500M.

    fps: frames wanted per second of video. longest_edge: as in TileSpec; frames are never split.
    """

    max_frames: int = 64
    fps: float = 1.0
    longest_edge: int = 2048

    def __post_init__(self) -> None:
        if self.max_frames < 1 or self.fps <= 0 or self.longest_edge < 1:
            raise ConfigError(f"{self} describes no frames: all three must be positive")
        if self.max_frames > MOST_FRAMES:
            raise ConfigError(f"{self.max_frames=} is more than the {MOST_FRAMES} that prompts can announce")


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """The frames of a video that are seen."""

    frames: Tensor  # (n, H, W, 3) uint8
    times_s: tuple[float, ...]  # n
    duration_s: float  # of the whole video


def sample(num_frames: int, fps: float, spec: VideoSpec) -> NDArray[np.int64]:
    """Ascending indices of the frames that the reference takes of a video.

    Source: SmolVLMVideoProcessor.sample_frames, transformers 5.23. That it compares seconds with frames times
    fps is its own; equality over many lengths and rates is in tests/parity/test_prompts.py.
    """
    duration_s = num_frames / fps
    wanted = max(min(round(spec.fps * duration_s), spec.max_frames), 1)
    first, last = 0, num_frames - 1
    if duration_s - 2 * SKIPPED_S > spec.max_frames * spec.fps:
        start = int(SKIPPED_S * fps)
        end = min(int(num_frames - SKIPPED_S * fps), last)
        first, last = (start, end) if start < end else (first, last)
    return np.unique(np.linspace(first, last, wanted, dtype=np.int64))


def intro(num_frames: int, duration_s: float) -> str:
    """What stands before the first frame."""
    clock = timedelta(seconds=int(duration_s))  # prints H:MM:SS
    return (
        f"You are provided the following series of {in_words(num_frames)} frames from a {clock} [H:MM:SS] "
        "video.\n"
    )


def stamp(time_s: float) -> str:
    """What stands before the frame of this time."""
    return f"\nFrame from {int(time_s // 60):02d}:{int(time_s % 60):02d}:"


def in_words(number: int) -> str:
    """1 to 999 as British English writes them: "one hundred and twenty-one"."""
    if not 1 <= number <= MOST_FRAMES:
        raise DataError(f"{number} frames cannot be announced: between 1 and {MOST_FRAMES} can")
    hundreds, rest = divmod(number, 100)
    tens, units = divmod(rest, 10)
    small = TO_NINETEEN.split()
    if rest < len(small):
        words = small[rest]
    else:
        words = TENS.split()[tens - 2] + (f"-{small[units]}" if units else "")
    return words if not hundreds else f"{small[hundreds]} hundred" + (f" and {words}" if rest else "")


def read_frames(frames: Any, fps: float, spec: VideoSpec) -> Clip:
    """Sample a video that is in memory.

    Args:
        frames: (n, H, W, 3) uint8, or a sequence of pictures of one size.
    """
    if not hasattr(frames, "__len__") or isinstance(frames, str | bytes) or len(frames) == 0:
        raise DataError(
            f"a video is a path, (n, H, W, 3) uint8, or a list of pictures, got {type(frames).__name__}"
            f"{' without frames' if hasattr(frames, '__len__') else ''}"
        )
    wanted = sample(len(frames), fps, spec)
    pictures = [open_picture(frames[i]) for i in wanted.tolist()]
    sizes = {tuple(picture.shape) for picture in pictures}
    if len(sizes) > 1:
        raise DataError(f"the frames of a video must be of one size, got (H, W, 3) of {sorted(sizes)}")
    return _clip(pictures, wanted.tolist(), fps, len(frames))


def read_video(source: str | Path | bytes, spec: VideoSpec, decoder: Decoder = "pyav") -> Clip:
    """Sample a video file, by its path or its bytes.

    Of an mp4, and of a Matroska or WebM with frames of equal length, only what lies between a wanted frame
    and the key frame before it is decoded. Other files, and those that such leaps fail in, are decoded from
    the beginning to the last wanted frame; if they do not count their frames, all of them before that.
    A rotation that the file asks players for is not applied, as in the reference.

    Raises:
        DataError: the file is missing, damaged, cut, too large, or no video.
    """
    file = VideoFile(source if isinstance(source, bytes) else Path(source), decoder)
    num_frames = file.num_frames
    wanted = sample(num_frames, file.fps, spec).tolist()
    return _clip(file.pick(wanted), wanted, file.fps, num_frames)


def _clip(pictures: Sequence[Tensor], indices: Sequence[int], fps: float, num_frames: int) -> Clip:
    times_s = tuple(i / fps for i in indices)
    return Clip(frames=torch.stack(list(pictures)), times_s=times_s, duration_s=num_frames / fps)
