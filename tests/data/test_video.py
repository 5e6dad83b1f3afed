"""Frames to mp4 and back."""

import io
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from synthetic import pictures
from tailorbird.data.video import Frame, decode, encode, join, measure
from tailorbird.errors import DataError

FPS = 10


def times(num: int, fps: int = FPS) -> list[float]:
    return [i / fps for i in range(num)]


def write(path: Path, frames: NDArray[np.uint8], fps: int = FPS) -> list[Frame]:
    """Write a video, and return it decoded."""
    path.write_bytes(encode(frames, fps, crf=10))
    return list(decode(path, times(len(frames), fps)))


def difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(np.abs(a.astype(int) - b).mean())


def test_without_loss_only_the_colour_format_costs_a_little(tmp_path: Path) -> None:
    frames = pictures(9, 32, 48, seed=1)
    (tmp_path / "a.mp4").write_bytes(encode(frames, FPS, crf=0))
    found = np.stack(list(decode(tmp_path / "a.mp4", times(9))))
    assert found.shape == (9, 32, 48, 3)
    assert found.dtype == np.uint8
    assert 0 < difference(found, frames) < 3  # of 255: colours are stored at half the resolution
    grey = np.repeat(frames[..., :1], 3, -1)
    (tmp_path / "b.mp4").write_bytes(encode(grey, FPS, crf=0))
    assert difference(np.stack(list(decode(tmp_path / "b.mp4", times(9)))), grey) < 1


def test_worse_quality_makes_smaller_files_and_larger_errors(tmp_path: Path) -> None:
    frames = pictures(9, 32, 48, seed=1)
    sizes, errors = [], []
    for crf in (0, 20, 45):
        data = encode(frames, FPS, crf=crf)
        (tmp_path / "a.mp4").write_bytes(data)
        sizes.append(len(data))
        errors.append(difference(np.stack(list(decode(tmp_path / "a.mp4", times(9)))), frames))
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)


def test_the_same_frames_make_the_same_bytes_whatever_the_memory_held_before() -> None:
    frames, rng, held = pictures(8, 96, 96, seed=3), np.random.default_rng(0), []
    found = set()
    for _ in range(80):
        held.append(rng.integers(0, 255, int(rng.integers(1, 200_000)), dtype=np.uint8))
        held = held[-20:]
        found.add(encode(frames, FPS, crf=10))
    assert len(found) == 1


def test_browsers_can_play_it_and_files_can_be_joined() -> None:
    with av.open(io.BytesIO(encode(pictures(12, 24, 40, seed=0), FPS, keyframe_every=5))) as file:
        stream = file.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt, stream.average_rate) == ("h264", "yuv420p", FPS)
        packets = [packet for packet in file.demux(stream) if packet.dts is not None]
        assert all(packet.pts == packet.dts for packet in packets), "no frame waits for a later one"
        assert [i for i, packet in enumerate(packets) if packet.is_keyframe] == [0, 5, 10]


@pytest.mark.parametrize("fps", [1, 7, 10, 20, 30, 80])
def test_joined_files_decode_like_the_parts(tmp_path: Path, fps: int) -> None:
    parts = [write(tmp_path / f"{i}.mp4", pictures(n, 32, 48, i), fps) for i, n in enumerate((7, 1, 12))]
    join([tmp_path / f"{i}.mp4" for i in range(3)], fps, tmp_path / "joined.mp4")
    joined = list(decode(tmp_path / "joined.mp4", times(20, fps)))
    np.testing.assert_array_equal(np.stack(joined), np.concatenate(parts))
    assert measure((tmp_path / "joined.mp4").read_bytes()) == (20, 32, 48)


def test_videos_of_different_sizes_cannot_share_a_file(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", pictures(3, 32, 48, 0))
    write(tmp_path / "b.mp4", pictures(3, 24, 48, 0))
    with pytest.raises(DataError, match=r"b\.mp4 is encoded differently from .*a\.mp4"):
        join([tmp_path / "a.mp4", tmp_path / "b.mp4"], FPS, tmp_path / "joined.mp4")


def test_a_damaged_part_is_named_when_joining(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", pictures(3, 32, 48, 0))
    (tmp_path / "b.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(DataError, match=r"b\.mp4 is not a readable video"):
        join([tmp_path / "a.mp4", tmp_path / "b.mp4"], FPS, tmp_path / "joined.mp4")


@pytest.mark.parametrize("steps", [[0], [23], [4, 5, 6], [9, 10, 11, 20], [3, 3, 17, 17, 17], range(24)])
def test_frames_found_by_time_are_those_of_a_decode_from_the_start(tmp_path: Path, steps: list[int]) -> None:
    everything = write(tmp_path / "a.mp4", pictures(24, 32, 48, 3))
    found = list(decode(tmp_path / "a.mp4", [np.float32(step / FPS) for step in steps]))
    np.testing.assert_array_equal(np.stack(found), np.stack([everything[step] for step in steps]))


@pytest.mark.parametrize("time_s", [0.05, 2.4, 100.0])
def test_a_time_without_a_frame_is_refused(tmp_path: Path, time_s: float) -> None:
    write(tmp_path / "a.mp4", pictures(24, 32, 48, 3))
    with pytest.raises(DataError, match=rf"a\.mp4 has no frame at {time_s:.4f} s .*cut or damaged"):
        list(decode(tmp_path / "a.mp4", [0.0, time_s]))


def test_a_missing_video_is_named_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.mp4 is missing: fetch or record the dataset again"):
        list(decode(tmp_path / "a.mp4", [0.0]))


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.9])
def test_a_cut_video_is_named_with_its_remedy(tmp_path: Path, keep: float) -> None:
    write(tmp_path / "a.mp4", pictures(24, 32, 48, 3))
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(DataError, match=r"a\.mp4 is not a readable video: .*Fetch or record it again"):
        list(decode(tmp_path / "a.mp4", times(24)))


def test_pictures_overwritten_in_the_middle_are_refused_and_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write(path, pictures(24, 32, 48, 3))
    data = path.read_bytes()
    begin = data.index(b"mdat") + 4
    end = begin - 8 + int.from_bytes(data[begin - 8 : begin - 4], "big")
    for where in range(begin + 800, end - 300, 101):  # the first 700 bytes are a comment of the encoder
        path.write_bytes(data[:where] + bytes(300) + data[where + 300 :])
        with pytest.raises(DataError, match=r"a\.mp4 is not a readable video"):
            list(decode(path, times(24)))


def test_a_video_is_measured_without_decoding_it() -> None:
    assert measure(encode(pictures(5, 24, 40, 0), FPS)) == (5, 24, 40)
    with pytest.raises(DataError, match="these 800 bytes are not a readable video"):
        measure(b"no video" * 100)
