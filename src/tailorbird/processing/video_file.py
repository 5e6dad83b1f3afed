"""Single frames of a video file, by their number, without decoding or holding all of it."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import SEEK_CUR, SEEK_END, BytesIO
from itertools import pairwise
from pathlib import Path
from stat import S_ISREG
from typing import Any, BinaryIO, Literal

import av
import av.error
import torch
from torch import Tensor

from tailorbird.errors import ConfigError, DataError

Decoder = Literal["pyav", "torchcodec"]
LARGEST_FRAME = 64_000_000  # px; 8K has 33 million
LARGEST_CLIP = 1_000_000_000  # px of all frames kept: 3 GB
EBML, SEGMENT = bytes.fromhex("1a45dfa3"), bytes.fromhex("18538067")  # how parts of a Matroska begin
# Neither a name nor what stands in a file may lead FFmpeg to another file, or into the network.
ALONE = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,matroska,webm,avi,mpeg,mpegts,ogg,flv,asf,gif",  # a playlist is a format too
}


class VideoFile:
    """A video file, or its bytes, that has been read once: what it promises is there.

    Nothing is decoded if the file counts its frames, or is a Matroska (WebM) with one packet every so often.
    Else all of it is, to count.

    decoder: which of two makes pictures of what PyAV has read and found whole; the pictures are the same.
    What torchcodec cannot do, or does otherwise, PyAV does. It shows a frame that is damaged inside of an
    intact packet as FFmpeg makes it up, where PyAV refuses it.
    num_frames: as many as can be decoded. fps: on average.

    Raises:
        ConfigError: torchcodec is wanted and does not load.
    """

    def __init__(self, source: Path | bytes, decoder: Decoder = "pyav") -> None:
        self._source, self._torchcodec = source, import_torchcodec() if decoder == "torchcodec" else None
        self._path = path = "the video" if isinstance(source, bytes) else source
        with self._opened() as (file, stream):
            if not stream.average_rate:
                raise DataError(f"{path} does not say its frames per second: convert it to mp4")
            self.fps, promised = float(stream.average_rate), stream.frames
            is_matroska = "matroska" in file.format.name
            packets = [(p.pts, p.is_keyframe) for p in self._packets(file, stream) if p.size]
        if len(packets) < promised and _is_cut(source):
            raise DataError(
                f"{path} ends after {len(packets)} of its {promised} frames: it is cut. Fetch it again, or "
                "convert it to keep what is there"
            )
        if is_matroska and _is_cut(source):
            raise DataError(
                f"{path} is shorter than it says: it is cut. Fetch it again, or convert it to keep what is "
                "there"
            )
        times = {pts for pts, _ in packets}
        keys = sorted(pts for pts, is_key in packets if is_key and pts is not None)
        # An edit list hides some of what an mp4 counts, and VP8 has packets that are never shown: then the
        # only sure number is that of the frames that come out.
        self._seekable = None not in times and (
            len(packets) == promised == len(times)
            or (is_matroska and not promised and _is_regular(sorted(times)) and keys[:1] == [min(times)])
        )
        self._times = sorted(times) if self._seekable else []
        self._keys = keys if self._seekable else []
        self.num_frames = len(times) if self._seekable else sum(1 for _ in self._in_order())
        if not self.num_frames:
            raise DataError(f"{path} holds a video of no frames: record or fetch it again")

    def pick(self, wanted: Sequence[int]) -> list[Tensor]:
        """Frames by number, ascending, each (H, W, 3) uint8."""
        pictures: list[Tensor] = []
        if self._seekable and self._torchcodec is not None:
            pictures = self._by_torchcodec(wanted)
        if self._seekable and not pictures:
            # from the key frame of an open group, the next frames cannot be decoded
            with suppress(DataError):
                pictures = self._kept(self._leaping(wanted))
        if len(pictures) < len(wanted):
            pictures = self._kept(self._in_order(wanted))
        if len(pictures) < len(wanted):
            raise DataError(
                f"{self._path} lacks frame {wanted[len(pictures)]}: it is damaged. Fetch it again"
            )
        return pictures

    def _by_torchcodec(self, wanted: Sequence[int]) -> list[Tensor]:
        """None if it cannot read the file, numbers its frames otherwise, or turns them as players do."""
        assert self._torchcodec is not None
        with self._opened(len(wanted)):  # for its checks of sizes
            path = self._source if isinstance(self._source, bytes) else str(self._source.absolute())
        try:
            file = self._torchcodec(path, dimension_order="NHWC")
            if file.metadata.num_frames != self.num_frames or file.metadata.rotation:
                return []
            return list(file.get_frames_at(list(wanted)).data)
        except (RuntimeError, ValueError):
            return []

    def _kept(self, frames: Iterator[Any]) -> list[Tensor]:
        pictures: list[Tensor] = []
        for frame in frames:
            pictures.append(torch.from_numpy(frame.to_ndarray(format="rgb24")))
            if pictures[-1].shape != pictures[0].shape:
                raise DataError(f"{self._path} changes its size on the way: convert it to one size")
        return pictures

    def _in_order(self, wanted: Sequence[int] | None = None) -> Iterator[Any]:
        """Decode from the beginning, and yield all frames or those wanted."""
        found = 0
        with self._opened(len(wanted or ())) as (file, stream):
            for i, frame in enumerate(self._decoded(file, stream)):
                if wanted is None or i == wanted[found]:
                    yield frame
                    found += 1
                if wanted is not None and found == len(wanted):
                    return

    def _leaping(self, wanted: Sequence[int]) -> Iterator[Any]:
        """Yield the frames wanted; leap to a key frame whenever one lies in between."""
        with self._opened(len(wanted)) as (file, stream):
            here, frames = -1, self._decoded(file, stream)
            for i in wanted:
                time = self._times[i]
                before = bisect_right(self._keys, time)
                if before and (here < 0 or self._keys[before - 1] > self._times[here]):
                    file.seek(self._keys[before - 1], stream=stream)
                    frames = self._decoded(file, stream)
                frame = next((frame for frame in frames if frame.pts is None or frame.pts >= time), None)
                if frame is None or frame.pts != time:
                    return
                here = i
                yield frame

    @contextmanager
    def _opened(self, num_kept: int = 1) -> Iterator[tuple[Any, Any]]:
        """The container and its first video stream, checked; damage in the block is named after the file."""
        path, source = self._path, self._source
        try:
            if isinstance(source, Path) and not S_ISREG(source.stat().st_mode):
                raise DataError(f"{path} is no regular file: give the path of a video")
            opened = BytesIO(source) if isinstance(source, bytes) else f"file:{path}"
            with av.open(opened, options=ALONE) as file:
                if not file.streams.video:
                    kinds = ", ".join(sorted({stream.type for stream in file.streams})) or "nothing"
                    raise DataError(f"{path} has no video, only {kinds}: give another file")
                stream = file.streams.video[0]
                self._check_size(stream.codec_context.width, stream.codec_context.height, num_kept)
                stream.thread_type = "NONE"  # threads swallow what is wrong with the last frames
                stream.codec_context.options = {"err_detect": "explode"}  # the default is to make frames up
                yield file, stream
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            raise DataError(
                f"{path} cannot be read ({error.strerror}): check the path of the video"
            ) from None
        except DataError:
            raise
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise DataError(
                f"{path} is not a readable video ({getattr(error, 'strerror', None) or error}): it is cut, "
                "damaged or no video at all. Fetch or convert it again"
            ) from None

    def _packets(self, file: Any, stream: Any) -> Iterator[Any]:
        for packet in file.demux(stream):
            if packet.is_corrupt:
                raise DataError(f"{self._path} is damaged or cut on the way: fetch or convert it again")
            yield packet

    def _decoded(self, file: Any, stream: Any) -> Iterator[Any]:
        for packet in self._packets(file, stream):
            for frame in packet.decode():
                self._check_size(frame.width, frame.height)
                yield frame

    def _check_size(self, width: int, height: int, num_kept: int = 1) -> None:
        if width * height > LARGEST_FRAME or width * height * num_kept > LARGEST_CLIP:
            raise DataError(
                f"{num_kept} frames of {self._path} are {width} x {height} px, more than the "
                f"{LARGEST_FRAME:,} px a frame and {LARGEST_CLIP:,} in all that are decoded: scale it "
                "down, or sample fewer frames"
            )


def import_torchcodec() -> Any:
    """Its video decoder. Raises ConfigError if it does not load."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"torchcodec does not load ({reason}): pip install 'tailorbird[torchcodec]', and FFmpeg's shared "
            "libraries by your system's packages; or choose pyav"
        ) from None
    return VideoDecoder


def _is_regular(times: Sequence[int]) -> bool:
    """Whether frames are equally long, as far as ticks can say."""
    gaps = {after - before for before, after in pairwise(times)}
    return bool(times) and (not gaps or max(gaps) - min(gaps) <= 1)


def _is_cut(source: Path | bytes) -> bool:
    """Whether an mp4, AVI or Matroska promises more bytes than there are."""
    with BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        size = file.seek(0, SEEK_END)
        file.seek(0)
        if file.read(4) == EBML:
            return _end_of_segment(file) > size
        return _end_of_boxes(file, size) > size


def _end_of_boxes(file: BinaryIO, size: int) -> int:
    """Where the last box of an mp4 ends, or the one chunk of an AVI; 0 if it does not say."""
    at = 0
    while at + 16 <= size:
        file.seek(at)
        header = file.read(16)
        length = int.from_bytes(header[:4])
        if length == 1:  # the true one follows the name
            length = int.from_bytes(header[8:])
        if length < 8:  # 0: to the end of the file
            return 0
        at += length
    return at


def _end_of_segment(file: BinaryIO) -> int:
    """Where the segment of a Matroska ends; 0 if it does not say. The file stands behind its first word."""
    header = _length(file)
    if header is None:
        return 0
    file.seek(header, SEEK_CUR)
    if file.read(4) != SEGMENT:
        return 0
    length = _length(file)
    return 0 if length is None else file.tell() + length


def _length(file: BinaryIO) -> int | None:
    """An EBML length: as many bytes as the first has zeros in front, and one; only ones mean unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    bits = 7 * (9 - first[0].bit_length())
    value = int.from_bytes(first + file.read(bits // 7 - 1)) & ((1 << bits) - 1)
    return None if value == (1 << bits) - 1 else value
