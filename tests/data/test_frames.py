"""The cache of decoded pictures."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from synthetic import write_dataset
from tailorbird.data.frames import load_frames
from tailorbird.data.lerobot import LeRobotDataset
from tailorbird.errors import DataError, StorageError
from tailorbird.processing.image import ImageSpec, Letterbox

SPEC = ImageSpec(size=20, crop=(0.1, 0.2, 0.8, 0.7))
CAMERAS = ("wrist", "front")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "set", range(3))
    return tmp_path / "set"


def stamps(cache: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in cache.iterdir()}


@pytest.mark.parametrize("workers", [1, 3])
def test_every_row_has_its_pictures_shrunk_in_the_order_asked_for(root: Path, workers: int) -> None:
    data = LeRobotDataset(root)
    frames = load_frames(data, SPEC, CAMERAS, root / "cache", workers)
    assert [one.shape for one in frames] == [(30, 20, 20, 3)] * 2
    assert {one.dtype for one in frames} == {np.dtype(np.uint8)}
    for episode in data.episodes:
        for number, camera in enumerate(CAMERAS):
            whole = torch.from_numpy(np.stack(list(data.frames(episode, camera))))
            mine = frames[number][episode.start : episode.start + episode.length]
            np.testing.assert_array_equal(mine, SPEC.shrink(whole).numpy())


def test_pictures_that_are_not_shrunk_keep_the_size_that_their_camera_has(root: Path) -> None:
    data = LeRobotDataset(root)
    frames = load_frames(data, Letterbox(size=9), CAMERAS, root / "cache", 2)
    assert [one.shape for one in frames] == [(30, 24, 40, 3), (30, 32, 48, 3)]
    last = data.episodes[-1]
    for camera, one in zip(CAMERAS, frames, strict=True):
        np.testing.assert_array_equal(one[last.start :], np.stack(list(data.frames(last, camera))))


def test_pictures_are_decoded_once(root: Path) -> None:
    data, cache = LeRobotDataset(root), root / "cache"
    first = load_frames(data, SPEC, CAMERAS, cache, 1)
    before = stamps(cache)
    again = load_frames(LeRobotDataset(root), SPEC, CAMERAS, cache, 1)
    np.testing.assert_array_equal(again, first)
    assert stamps(cache) == before
    assert len(before) == 2
    with pytest.raises(ValueError, match="read-only"):
        again[0][0] = 0


def test_other_pictures_cameras_or_data_are_decoded_anew(root: Path) -> None:
    cache = root / "cache"

    def load(spec: ImageSpec = SPEC, cameras: tuple[str, ...] = CAMERAS) -> int:
        load_frames(LeRobotDataset(root), spec, cameras, cache, 1)
        return len(stamps(cache))

    assert load(cameras=("front",)) == 1
    assert load(cameras=("front", "wrist")) == 2
    assert load(cameras=("wrist", "front")) == 2
    assert load(spec=replace(SPEC, crop=(0.0, 0.0, 1.0, 1.0))) == 4
    write_dataset(root, range(3, 4))
    assert load() == 6
    assert {len(one) > 30 for one in load_frames(LeRobotDataset(root), SPEC, CAMERAS, cache, 1)} == {True}
    assert load() == 6


def test_a_cache_that_was_cut_is_made_again(root: Path) -> None:
    data, cache = LeRobotDataset(root), root / "cache"
    whole = np.array(load_frames(data, SPEC, CAMERAS, cache, 1))
    file = min(cache.iterdir())
    file.write_bytes(file.read_bytes()[:1000])
    np.testing.assert_array_equal(load_frames(data, SPEC, CAMERAS, cache, 1), whole)


def test_a_video_that_cannot_be_read_leaves_no_cache(root: Path) -> None:
    data, cache = LeRobotDataset(root), root / "cache"
    shutil.rmtree(root / "videos/observation.images.wrist")
    with pytest.raises(DataError, match=r"file-000\.mp4 is missing"):
        load_frames(data, SPEC, CAMERAS, cache, 2)
    assert list(cache.iterdir()) == []


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(root: Path) -> None:
    huge = ImageSpec(size=2_000_000)  # 700 TB
    with pytest.raises(StorageError, match=r"need 720000\.0 GB at .*cache, .* GB are free: free some space"):
        load_frames(LeRobotDataset(root), huge, CAMERAS, root / "cache", 1)
    assert list((root / "cache").iterdir()) == []


LIMITED = """
import resource, sys
from pathlib import Path
from tailorbird.data.frames import load_frames
from tailorbird.data.lerobot import LeRobotDataset
from tailorbird.errors import StorageError
from tailorbird.processing.image import ImageSpec

root = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    load_frames(LeRobotDataset(root), ImageSpec(size=20), ("front",), root / "cache", 1)
except StorageError as error:
    print(error)
"""


def test_a_limit_on_file_sizes_is_named_with_its_remedy(root: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, root], capture_output=True, text=True)
    assert f"cannot write {root}/cache/frames-" in done.stdout, done.stderr
    assert "raise the limit, then run the same command again" in done.stdout
    assert list((root / "cache").iterdir()) == []


def test_what_a_killed_process_left_behind_is_cleared_away(root: Path) -> None:
    leftover = root / "cache/.frames-0123.99.u8"
    leftover.parent.mkdir()
    leftover.write_bytes(b"half of it")
    load_frames(LeRobotDataset(root), SPEC, CAMERAS, root / "cache", 1)
    assert [path.suffix for path in (root / "cache").iterdir()] == [".u8", ".u8"]
    assert not leftover.exists()
