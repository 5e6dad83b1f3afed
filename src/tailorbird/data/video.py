"""Frames to mp4 and back, through PyAV: no ffmpeg on the machine needed."""

import io
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from tailorbird.errors import DataError

Frame = NDArray[np.uint8]  # (H, W, 3)


def encode(frames: Iterable[Frame], fps: int, *, crf: int = 18, keyframe_every: int = 10) -> bytes:
    """Compress (H, W, 3) uint8 frames, H and W even, to an H.264 mp4 that browsers play.

    Without B-frames: each frame decodes from the past only, and files join without re-encoding.
    crf: 0 is lossless, 18 is hard to tell from the original, 51 is the worst.
    """
    out = io.BytesIO()
    options = {"crf": str(crf), "preset": "fast", "bf": "0", "g": str(keyframe_every), "threads": "1"}
    options["x264-params"] = "mbtree=0"  # it reads memory that nobody set: the same frames, other bytes
    with av.open(out, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=fps, options=options)
        stream.pix_fmt = "yuv420p"
        for i, frame in enumerate(frames):
            if i == 0:
                stream.height, stream.width = frame.shape[:2]
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = i, Fraction(1, fps)
            file.mux(stream.encode(picture))
        file.mux(stream.encode())
    return out.getvalue()


def measure(video: bytes) -> tuple[int, int, int]:
    """Number, height and width of the frames of an mp4, from its index: nothing is decoded."""
    try:
        with av.open(io.BytesIO(video)) as file:
            stream = file.streams.video[0]
            return stream.frames, stream.height, stream.width
    except (av.error.FFmpegError, IndexError) as error:
        raise DataError(f"these {len(video)} bytes are not a readable video: {error}") from error


def join(parts: Sequence[Path], fps: int, out: Path) -> None:
    """Put mp4 files of equal encoding one after the other, without touching a picture.

    Raises:
        DataError: a file is damaged, or differs in codec or size from the first.
    """
    with av.open(str(out), "w", format="mp4") as file:
        stream, start = None, 0
        for part in parts:
            try:
                with av.open(str(part)) as source:
                    theirs = source.streams.video[0]
                    same = (
                        theirs.codec_context.width,
                        theirs.codec_context.height,
                        theirs.codec_context.extradata,
                    )
                    if stream is None:
                        stream, first = file.add_stream_from_template(theirs), same
                        stream.time_base = Fraction(1, fps)
                    if same != first:
                        raise DataError(
                            f"{part} is encoded differently from {parts[0]}: they cannot share a file"
                        )
                    assert theirs.time_base is not None
                    step = int(1 / fps / theirs.time_base)
                    count = 0
                    for packet in source.demux(theirs):
                        if packet.dts is None or packet.pts is None:
                            continue  # the empty packet at the end
                        packet.pts = packet.pts // step + start
                        packet.dts = packet.dts // step + start
                        packet.duration = 1
                        packet.time_base = Fraction(1, fps)
                        packet.stream = stream
                        file.mux(packet)
                        count += 1
            except av.error.InvalidDataError as error:
                raise DataError(f"{part} is not a readable video: {error.strerror}") from error
            start += count


def decode(path: Path, times_s: Sequence[float], tolerance_s: float = 1e-3) -> Iterator[Frame]:
    """Yield the frames at the given times, which must ascend.

    Raises:
        DataError: the file is missing or damaged, or has no frame within the tolerance of a wanted time.
    """
    try:
        with av.open(str(path)) as file:
            stream = file.streams.video[0]
            stream.thread_type = "NONE"
            stream.codec_context.options = {"err_detect": "explode"}  # the default is to make frames up
            assert stream.time_base is not None
            file.seek(int(max(times_s[0], 0) / stream.time_base), stream=stream)
            found = 0
            for frame in file.decode(stream):
                if frame.time is None or frame.time < times_s[found] - tolerance_s:
                    continue
                while abs(frame.time - times_s[found]) <= tolerance_s:
                    yield cast(Frame, frame.to_ndarray(format="rgb24"))
                    found += 1
                    if found == len(times_s):
                        return
                if frame.time > times_s[found] + tolerance_s:
                    break
    except FileNotFoundError:
        raise DataError(f"{path} is missing: fetch or record the dataset again") from None
    except (av.error.FFmpegError, IndexError) as error:
        raise DataError(f"{path} is not a readable video: {error}. Fetch or record it again") from error
    raise DataError(
        f"{path} has no frame at {times_s[found]:.4f} s (within {tolerance_s} s): it is cut or damaged"
    )
