"""Which frames of a video are seen, what is said about them, and which files are refused."""

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from tailorbird.data.video import encode
from tailorbird.errors import ConfigError, DataError
from tailorbird.processing import video_file
from tailorbird.processing.video import (
    Clip,
    VideoSpec,
    in_words,
    intro,
    read_frames,
    read_video,
    sample,
    stamp,
)

SPEC = VideoSpec(max_frames=4, fps=2.0)


def grey(num_frames: int, height: int = 16, width: int = 24) -> NDArray[np.uint8]:
    """Frame i is of level 5 i + 20, so that a decoded one tells which it is."""
    levels = 20 + 5 * np.arange(num_frames, dtype=np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (num_frames, height, width, 3))


def numbers(frames: torch.Tensor) -> list[int]:
    return [round((level - 20) / 5) for level in frames.float().mean((1, 2, 3)).tolist()]


@pytest.fixture
def mp4(tmp_path: Path) -> Path:
    path = tmp_path / "video.mp4"
    path.write_bytes(encode(grey(30), 10))
    return path


def test_frames_are_spread_from_the_first_to_the_last() -> None:
    assert sample(30, 10.0, SPEC).tolist() == [0, 9, 19, 29]
    assert sample(10, 10.0, SPEC).tolist() == [0, 9]


def test_a_moment_still_gives_one_frame_and_no_frame_is_taken_twice() -> None:
    assert sample(1, 30.0, SPEC).tolist() == [0]
    assert sample(2, 0.5, SPEC).tolist() == [0, 1]


def test_a_long_video_loses_a_second_at_both_ends() -> None:
    assert sample(200, 10.0, SPEC).tolist() == [10, 70, 130, 190]


def test_the_words_of_a_video_are_those_of_the_release() -> None:
    assert intro(21, 3725.9) == (
        "You are provided the following series of twenty-one frames from a 1:02:05 [H:MM:SS] video.\n"
    )
    assert [stamp(s) for s in (0.0, 59.99, 61.2, 6000)] == [
        "\nFrame from 00:00:",
        "\nFrame from 00:59:",
        "\nFrame from 01:01:",
        "\nFrame from 100:00:",
    ]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (1, "one"),
        (13, "thirteen"),
        (40, "forty"),
        (64, "sixty-four"),
        (100, "one hundred"),
        (101, "one hundred and one"),
        (999, "nine hundred and ninety-nine"),
    ],
)
def test_numbers_are_spelled_out(number: int, words: str) -> None:
    assert in_words(number) == words


@pytest.mark.parametrize("number", [0, 1000])
def test_numbers_beyond_the_words_are_refused(number: int) -> None:
    with pytest.raises(DataError, match="between 1 and 999"):
        in_words(number)


@pytest.mark.parametrize(("field", "value"), [("max_frames", 0), ("max_frames", 1000), ("fps", 0.0)])
def test_a_spec_without_frames_or_beyond_the_words_is_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=r"positive|that prompts can announce"):
        VideoSpec(**{field: value})  # type: ignore[arg-type]


def test_a_file_gives_the_frames_that_were_asked_for_and_when_they_were(mp4: Path) -> None:
    clip = read_video(mp4, SPEC)
    assert clip.frames.shape == (4, 16, 24, 3)
    assert clip.frames.dtype == torch.uint8
    assert numbers(clip.frames) == [0, 9, 19, 29]
    assert clip.times_s == pytest.approx((0.0, 0.9, 1.9, 2.9), abs=1e-12)
    assert clip.duration_s == pytest.approx(3.0)


def test_the_bytes_of_a_file_give_what_the_file_gives(mp4: Path) -> None:
    of_file, of_bytes = read_video(mp4, SPEC), read_video(mp4.read_bytes(), SPEC)
    torch.testing.assert_close(of_bytes.frames, of_file.frames, rtol=0, atol=0)
    assert (of_bytes.times_s, of_bytes.duration_s) == (of_file.times_s, of_file.duration_s)
    for cut in (0, 100, mp4.stat().st_size // 2):
        with pytest.raises(DataError, match="the video"):
            read_video(mp4.read_bytes()[:cut], SPEC)


def test_frames_in_memory_are_sampled_like_those_of_a_file(mp4: Path) -> None:
    levels = grey(30)
    for frames in (levels, torch.from_numpy(levels.copy()), [Image.fromarray(one) for one in levels]):
        clip = read_frames(frames, 10.0, SPEC)
        assert numbers(clip.frames) == [0, 9, 19, 29]
        assert clip.times_s == read_video(mp4, SPEC).times_s
        assert clip.duration_s == 3.0


@pytest.fixture
def mkv(mp4: Path) -> Path:
    return repacked(mp4, mp4.with_suffix(".mkv"))


def repacked(source: Path, target: Path, stretch: int = 0) -> Path:
    """The packets of a video in another container. stretch: ticks of 1 / 10 s to add before frame 20."""
    with av.open(str(source)) as file, av.open(str(target), "w") as copy:
        stream = copy.add_stream_from_template(file.streams.video[0])
        for packet in file.demux(video=0):
            if packet.size:
                late = (
                    int(Fraction(stretch, 10) / packet.time_base) if packet.pts * packet.time_base >= 2 else 0
                )
                packet.pts, packet.dts = packet.pts + late, packet.dts + late
                packet.stream = stream
                copy.mux(packet)
    with av.open(str(target)) as copy:
        assert copy.streams.video[0].frames == 0
    return target


def decoded_by(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Clip, int]:
    """What is read, and how many frames were decoded for it."""
    num, real = 0, video_file.VideoFile._decoded

    def counted(*args: Any) -> Iterator[Any]:
        nonlocal num
        for frame in real(*args):
            num += 1
            yield frame

    with monkeypatch.context() as patch:
        patch.setattr(video_file.VideoFile, "_decoded", counted)
        return read_video(path, SPEC), num


def test_a_matroska_gives_the_frames_of_the_mp4_and_decodes_no_more(
    mp4: Path, mkv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ours, num_ours), (expected, num_expected) = (decoded_by(path, monkeypatch) for path in (mkv, mp4))
    assert torch.equal(ours.frames, expected.frames)
    assert (ours.times_s, ours.duration_s) == (expected.times_s, expected.duration_s)
    assert num_ours == num_expected <= 1 + 10 + 10 + 10  # key frames are 10 apart; the first is wanted


def test_few_frames_of_a_long_matroska_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "long.mp4"
    path.write_bytes(encode(np.repeat(grey(50), 8, 0), 10))
    clip, num_decoded = decoded_by(repacked(path, tmp_path / "long.mkv"), monkeypatch)
    assert len(clip.frames) == 4
    assert num_decoded <= 4 * 10 < 400


def test_a_matroska_of_uneven_frames_is_counted_by_decoding(
    mp4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = repacked(mp4, tmp_path / "uneven.mkv", stretch=3)
    clip, num_decoded = decoded_by(path, monkeypatch)
    assert torch.equal(clip.frames, read_video(mp4, SPEC).frames[: len(clip.frames)])
    assert num_decoded >= 30


@pytest.mark.parametrize(("container", "codec"), [("mkv", "mpeg4"), ("ts", "libx264"), ("avi", "mpeg4")])
def test_other_containers_give_the_same_frames(tmp_path: Path, container: str, codec: str) -> None:
    path = tmp_path / f"video.{container}"
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for one in grey(30, 16, 32):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(one), format="rgb24")))
        file.mux(stream.encode())
    clip = read_video(path, SPEC)
    assert numbers(clip.frames) == [0, 9, 19, 29]
    assert clip.duration_s == pytest.approx(3.0)


def test_a_matroska_is_refused_wherever_it_was_cut(mkv: Path) -> None:
    whole = mkv.read_bytes()
    for length in np.random.default_rng(0).integers(len(whole) // 5, len(whole), 40).tolist():
        mkv.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"video\.mkv .*cut"):
            read_video(mkv, SPEC)


def test_only_what_is_wanted_is_kept(mp4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[tuple[int, ...]] = []
    real = torch.from_numpy
    monkeypatch.setattr(
        video_file.torch, "from_numpy", lambda array: (kept.append(array.shape), real(array))[1]
    )
    read_video(mp4, SPEC)
    assert kept == [(16, 24, 3)] * 4


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"bf": "0", "g": "7"}),
        ("libx264", {"bf": "3", "g": "12"}),
        ("libx264", {"bf": "3", "g": "9", "x264-params": "open-gop=1:scenecut=0"}),
        ("libx264", {"bf": "2", "g": "300"}),
        ("mpeg4", {"bf": "2", "g": "6"}),
        ("libvpx-vp9", {"g": "10", "lag-in-frames": "16", "cpu-used": "8"}),
    ],
)
@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_leaping_between_key_frames_finds_what_decoding_in_order_finds(
    tmp_path: Path, codec: str, options: dict[str, str], uneven: bool, container: str
) -> None:
    path, time = tmp_path / "video", 0
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for _ in range(60):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 256, (32, 48, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 10)
            time += int(rng.integers(1, 4)) if uneven else 1
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    reader = video_file.VideoFile(path)
    assert reader._seekable == (container == "mp4" or not uneven)
    assert reader.num_frames == 60
    everything = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in reader._in_order()]
    assert len(everything) == 60
    for wanted in ([0], [59], [30], [0, 1, 2], [5, 29, 30, 58], list(range(0, 60, 4)), [11, 12, 13, 24, 36]):
        for ours, expected in zip(reader.pick(wanted), [everything[i] for i in wanted], strict=True):
            assert torch.equal(ours, expected), wanted


def test_what_lies_before_the_last_key_frame_is_not_decoded(
    mp4: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, decoded = video_file.VideoFile(mp4), []
    monkeypatch.setattr(reader, "_check_size", lambda *size: decoded.append(size))
    reader.pick([0, 29])  # key frames are 10 apart
    assert len(decoded) <= 1 + 1 + 10  # the stream itself, frame 0, at most frames 20 to 29


@pytest.mark.parametrize(
    "name",
    ["pipe:0", "concat:{a}|{b}", "subfile,,start,0,end,0,,:{a}", "file:{a}", "http://localhost:9/a.mp4"],
)
def test_a_name_that_ffmpeg_takes_for_an_address_is_a_missing_file(mp4: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"cannot be read \(No such file"):
        read_video(name.format(a=mp4, b=mp4), SPEC)


def test_a_file_with_the_name_of_an_address_is_read(
    mp4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pipe:0", "concat:a|b", "-i", "a%03d.mp4", "cache:x"):
        (tmp_path / name).write_bytes(mp4.read_bytes())
        assert numbers(read_video(name, SPEC).frames) == [0, 9, 19, 29]


@pytest.mark.parametrize(
    "content",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{mp4}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {mp4}\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
        "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'><Period/></MPD>",
    ],
    ids=["hls", "ffconcat", "sdp", "dash"],
)
def test_a_playlist_named_like_a_video_opens_nothing_else(mp4: Path, content: str) -> None:
    path = mp4.with_name("list.mp4")
    path.write_text(content.format(mp4=mp4.name))
    with pytest.raises(DataError, match=r"list\.mp4 is not a readable video"):
        read_video(path, SPEC)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(DataError, match=r"pipe\.mp4 is no regular file"):
        read_video(tmp_path / "pipe.mp4", SPEC)


def damage(mp4: Path, kind: str) -> Path:
    path = mp4.with_name(f"{kind}.mp4")
    whole = mp4.read_bytes()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is not a video\n" * 50)
    elif kind == "half":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "garbled":
        start = whole.index(b"mdat") + 700
        path.write_bytes(whole[:start] + bytes(400) + whole[start + 400 :])
    elif kind == "folder":
        path.mkdir()
    elif kind == "picture":
        Image.fromarray(grey(1)[0]).save(path, format="PPM")
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"missing\.mp4 cannot be read \(No such file .*: check the path"),
        ("folder", r"folder\.mp4 is no regular file: give the path of a video"),
        ("empty", r"empty\.mp4 is not a readable video .* Fetch or convert it again"),
        ("text", r"text\.mp4 is not a readable video .* Fetch or convert it again"),
        ("half", r"half\.mp4 is not a readable video .* Fetch or convert it again"),
        ("garbled", r"garbled\.mp4 is not a readable video .* Fetch or convert it again"),
    ],
)
def test_a_file_that_is_no_whole_video_is_refused_in_one_line(mp4: Path, kind: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_video(damage(mp4, kind), SPEC)
    assert "\n" not in str(caught.value)


@pytest.fixture
def streaming(tmp_path: Path) -> Path:
    """The index in front, and sound between the frames."""
    rng = np.random.default_rng(0)
    path = tmp_path / "streaming.mp4"
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as file:
        stream, sound = file.add_stream("libx264", rate=10), file.add_stream("aac", rate=16000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(30):
            noise = rng.integers(0, 256, (48, 64, 3), np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
            tone = rng.normal(0, 0.3, (1, 1600)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 1600 * i
            file.mux(sound.encode(frame))
        file.mux([*stream.encode(), *sound.encode()])
    return path


def test_a_streaming_file_is_refused_wherever_it_was_cut(streaming: Path) -> None:
    whole = streaming.read_bytes()
    assert len(read_video(streaming, SPEC).frames) == 4
    rng = np.random.default_rng(0)
    for length in rng.integers(whole.index(b"mdat") + 4, len(whole) * 9 // 10, 60).tolist():
        streaming.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"streaming\.mp4 .*cut"):
            read_video(streaming, SPEC)


def box(length: int, name: bytes, body: int) -> bytes:
    head = length.to_bytes(4) + name if length < 2**32 else (1).to_bytes(4) + name + length.to_bytes(8)
    return head + bytes(body)


@pytest.mark.parametrize(
    ("content", "cut"),
    [
        (box(24, b"ftyp", 16) + box(40, b"mdat", 32), False),
        (box(24, b"ftyp", 16) + box(41, b"mdat", 32), True),
        (box(24, b"ftyp", 16) + box(2**33, b"mdat", 32), True),
        (box(24, b"ftyp", 16) + box(0, b"mdat", 32), False),  # to the end of the file, wherever that is
        (b"", False),
    ],
)
def test_a_file_is_cut_if_a_box_promises_more_than_there_is(
    tmp_path: Path, content: bytes, cut: bool
) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(content)
    assert video_file._is_cut(path) == cut


def test_a_video_that_was_never_filled_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "unfilled.mkv"
    with av.open(str(path), "w", format="matroska") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        file.start_encoding()
    with pytest.raises(DataError, match=r"unfilled\.mkv (holds a video of no frames|does not say|is not)"):
        read_video(path, SPEC)


def test_frames_that_an_edit_list_hides_are_not_counted(tmp_path: Path) -> None:
    path = tmp_path / "edited.mp4"
    with av.open(str(path), "w", format="mp4", options={"avoid_negative_ts": "disabled"}) as file:
        stream = file.add_stream("libx264", rate=10, options={"bf": "0", "g": "10"})
        stream.height, stream.width, stream.pix_fmt = 16, 24, "yuv420p"
        packets = []
        for i, one in enumerate(grey(30)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(one), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            packets += stream.encode(frame)
        for packet in [*packets, *stream.encode()]:
            packet.pts -= int(Fraction(1, 2) / packet.time_base)
            packet.dts -= int(Fraction(1, 2) / packet.time_base)
            file.mux(packet)
    with av.open(str(path)) as file:
        assert file.streams.video[0].frames == 30
    clip = read_video(path, SPEC)
    assert numbers(clip.frames) == [5, 13, 21, 29]
    assert clip.duration_s == 2.5


def test_a_recording_of_sound_alone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    with pytest.raises(DataError, match=r"sound\.mp4 has no video, only audio"):
        read_video(path, SPEC)


def test_frames_too_large_to_hold_are_refused_before_they_are_decoded(
    mp4: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_file, "LARGEST_FRAME", 16 * 24 - 1)
    with pytest.raises(DataError, match=r"video\.mp4 are 24 x 16 px, more than the 383 px a frame"):
        read_video(mp4, SPEC)
    monkeypatch.setattr(video_file, "LARGEST_FRAME", 16 * 24)
    monkeypatch.setattr(video_file, "LARGEST_CLIP", 4 * 16 * 24 - 1)
    with pytest.raises(DataError, match=r"4 frames of .*video\.mp4 .* or sample fewer frames"):
        read_video(mp4, SPEC)
    assert len(read_video(mp4, VideoSpec(max_frames=3, fps=2.0)).frames) == 3


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((0, 4, 4, 3), np.uint8), "got ndarray without frames"),
        ([], "got list without frames"),
        (3, "got int"),
        (b"abc", "got bytes"),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)], "must be of one size"),
        (np.zeros((2, 4, 4, 3), np.float32), r"uint8 in 0 to 255, got \(4, 4, 3\) torch.float32"),
    ],
)
def test_what_are_no_frames_is_refused(frames: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_frames(frames, 1.0, SPEC)
