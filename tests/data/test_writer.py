"""Datasets that grow episode by episode and survive the end of their writer at any moment."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from synthetic import CAMERAS, FPS, LAYOUT, TASKS, files, make_demo, one_camera, write_dataset
from tailorbird.data.lerobot import ACTION, CAMERA, STATE, LeRobotDataset
from tailorbird.data.stats import QUANTILES, merge
from tailorbird.data.video import decode
from tailorbird.data.writer import DatasetWriter, Demonstration
from tailorbird.errors import DataError

HERE = str(Path(__file__).parents[1])  # where synthetic.py is


def expect(data: LeRobotDataset, demos: list[Demonstration], scratch: Path) -> None:
    """The dataset holds these demonstrations, to the last number and pixel."""
    lengths = [len(demo.state) for demo in demos]
    assert [episode.length for episode in data.episodes] == lengths
    assert [episode.start for episode in data.episodes] == [sum(lengths[:i]) for i in range(len(demos))]
    assert len(data) == sum(lengths)
    np.testing.assert_array_equal(data.state, np.concatenate([demo.state for demo in demos]))
    np.testing.assert_array_equal(data.action, np.concatenate([demo.action for demo in demos]))
    np.testing.assert_array_equal(
        data.timestamp, np.concatenate([np.arange(n) / FPS for n in lengths]).astype(np.float32)
    )
    tasks = [data.tasks[i] for i in data.task_index]
    assert tasks == [demo.task for demo, n in zip(demos, lengths, strict=True) for _ in range(n)]
    for episode, demo in zip(data.episodes, demos, strict=True):
        for camera in CAMERAS:
            (scratch / "part.mp4").write_bytes(demo.videos[camera])
            given = list(decode(scratch / "part.mp4", [step / FPS for step in range(episode.length)]))
            np.testing.assert_array_equal(np.stack(list(data.frames(episode, camera))), np.stack(given))


def expect_stats(data: LeRobotDataset, demos: list[Demonstration]) -> None:
    """meta/stats.json is what NumPy says of all rows."""
    lengths = [len(demo.state) for demo in demos]
    columns: dict[str, Any] = {
        STATE: np.concatenate([demo.state for demo in demos]),
        ACTION: np.concatenate([demo.action for demo in demos]),
        "timestamp": np.concatenate([np.arange(n) / FPS for n in lengths]).astype(np.float32)[:, None],
        "frame_index": np.concatenate([np.arange(n) for n in lengths])[:, None],
        "episode_index": np.repeat(np.arange(len(demos)), lengths)[:, None],
        "index": np.arange(sum(lengths))[:, None],
    }
    for name, values in columns.items():
        found, exact = data.stats[name], np.asarray(values, np.float64)
        for kind in ("min", "max", "mean", "std"):
            np.testing.assert_allclose(found[kind], getattr(exact, kind)(0), rtol=1e-12, err_msg=name)
        for kind, q in QUANTILES.items():
            np.testing.assert_allclose(found[kind], np.quantile(exact, q, 0), rtol=1e-12, err_msg=name)
        assert found["count"].tolist() == [len(values)]
    for camera in CAMERAS:
        merged = merge([demo.picture_stats[camera] for demo in demos])
        for kind, value in merged.items():
            np.testing.assert_allclose(data.stats[CAMERA + camera][kind], value, rtol=1e-12)
            assert data.stats[CAMERA + camera][kind].shape == ((1,) if kind == "count" else (3, 1, 1))


def test_a_dataset_gives_back_what_was_written(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", range(5))
    data, demos = LeRobotDataset(tmp_path / "set"), [make_demo(seed) for seed in range(5)]
    expect(data, demos, tmp_path)
    expect_stats(data, demos)
    assert data.tasks == list(TASKS)
    assert (data.version, data.fps, data.cameras) == ("v3.0", 10, ("front", "wrist"))
    assert (data.state.shape[1], data.action.shape[1]) == (3, 2)
    assert not (tmp_path / "set/.staging").exists()


def test_small_limits_spread_a_dataset_over_several_files(tmp_path: Path) -> None:
    demos = [make_demo(seed) for seed in range(5)]
    size = len(demos[0].videos["front"]) / 1e6
    write_dataset(tmp_path / "set", range(5), data_mb=0.0025, video_mb=2.5 * size)
    data = LeRobotDataset(tmp_path / "set")
    assert len(list((tmp_path / "set/data").rglob("*.parquet"))) > 1
    for camera in CAMERAS:
        files = sorted((tmp_path / f"set/videos/{CAMERA}{camera}").rglob("*.mp4"))
        assert len(files) > 1
        assert {episode.videos[camera][0] for episode in data.episodes} == set(files)
        assert len({episode.videos[camera] for episode in data.episodes}) == 5
    expect(data, demos, tmp_path)
    expect_stats(data, demos)


def test_a_finished_dataset_can_be_continued(tmp_path: Path) -> None:
    root, demos = tmp_path / "set", [make_demo(seed) for seed in range(6)]
    before: dict[Path, bytes] = {}
    for part in (range(3), range(3, 4), range(4, 6)):
        write_dataset(root, part)
        held = {
            file: file.read_bytes() for kind in ("data", "videos") for file in (root / kind).rglob("file-*")
        }
        assert before.items() <= held.items(), "files that are finished stay as they are"
        before = held
    data = LeRobotDataset(root)
    expect(data, demos, tmp_path)
    expect_stats(data, demos)
    assert data.info["total_episodes"] == 6
    assert data.info["total_frames"] == len(data)
    assert data.info["splits"] == {"train": "0:6"}
    assert [fact["seed"] for fact in DatasetWriter(root, LAYOUT).facts] == list(range(6))


def test_staged_episodes_survive_their_writer_and_are_invisible_until_finished(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write_dataset(root, range(2))
    DatasetWriter(root, LAYOUT).add(make_demo(2))
    assert len(LeRobotDataset(root).episodes) == 2
    writer = DatasetWriter(root, LAYOUT)
    assert [fact["seed"] for fact in writer.facts] == [0, 1, 2]
    writer.add(make_demo(3))
    writer.finish()
    writer.finish()  # nothing left to do
    expect(LeRobotDataset(root), [make_demo(seed) for seed in range(4)], tmp_path)


def test_episodes_may_have_different_facts(tmp_path: Path) -> None:
    facts: list[dict[str, Any]] = [{"seed": 4}, {"seed": 5, "operator": "nobody"}, {}]
    for fact in facts:
        writer = DatasetWriter(tmp_path / "set", LAYOUT)
        writer.add(replace(make_demo(0), facts=fact))
        if not fact:
            writer.finish()
    assert DatasetWriter(tmp_path / "set", LAYOUT).facts == facts
    write_dataset(tmp_path / "set", range(1, 2))
    assert DatasetWriter(tmp_path / "set", LAYOUT).facts == [*facts, {"seed": 1}]


def broken(kind: str) -> Demonstration:
    demo = make_demo(1, length=9)
    short = make_demo(1, length=8)
    state, action = demo.state.copy(), demo.action.copy()
    state[4, 1], action[6, 0] = np.nan, np.inf
    return {
        "nan state": replace(demo, state=state),
        "infinite action": replace(demo, action=action),
        "state width": replace(demo, state=demo.state[:, :2]),
        "action length": replace(demo, action=demo.action[:-1]),
        "empty": replace(demo, state=demo.state[:0], action=demo.action[:0]),
        "missing camera": one_camera(demo, "front"),
        "other camera": replace(demo, videos={"front": demo.videos["front"], "left": b""}),
        "video length": replace(demo, videos={**demo.videos, "wrist": short.videos["wrist"]}),
        "video size": replace(demo, videos={**demo.videos, "wrist": demo.videos["front"]}),
        "no video": replace(demo, videos={**demo.videos, "wrist": b"no video"}),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan state", r"observation\.state at step 4 is .*nan.*not finite, the episode is refused"),
        ("infinite action", r"action at step 6 is .*inf.*not finite, the episode is refused"),
        ("state width", r"observation\.state of this episode has shape \(9, 2\), the dataset needs \(9, 3\)"),
        ("action length", r"action of this episode has shape \(8, 2\), the dataset needs \(9, 2\)"),
        ("empty", r"observation\.state of this episode has shape \(0, 3\)"),
        ("missing camera", r"this episode has cameras \['front'\], the dataset \['front', 'wrist'\]"),
        ("other camera", r"this episode has cameras \['front', 'left'\], the dataset \['front', 'wrist'\]"),
        ("video length", r"video of wrist .* \(8, 24, 40\), this episode needs \(9, 24, 40\)"),
        ("video size", r"video of wrist .* \(9, 32, 48\), this episode needs \(9, 24, 40\)"),
        ("no video", "not a readable video"),
    ],
)
def test_an_episode_that_cannot_be_used_is_refused_and_costs_nothing(
    tmp_path: Path, kind: str, message: str
) -> None:
    writer = DatasetWriter(tmp_path / "set", LAYOUT)
    writer.add(make_demo(0))
    with pytest.raises(DataError, match=message):
        writer.add(broken(kind))
    writer.add(make_demo(2))
    writer.finish()
    expect(LeRobotDataset(tmp_path / "set"), [make_demo(0), make_demo(2)], tmp_path)


@pytest.mark.parametrize("change", [{"fps": 20}, {"state_names": ("x", "y", "angle")}], ids=str)
def test_a_dataset_is_not_continued_with_another_layout(tmp_path: Path, change: dict[str, Any]) -> None:
    write_dataset(tmp_path / "set", range(1))
    with pytest.raises(DataError, match="other features or another rate: choose another folder"):
        DatasetWriter(tmp_path / "set", replace(LAYOUT, **change))


def test_a_gap_in_the_staged_episodes_is_refused(tmp_path: Path) -> None:
    writer = DatasetWriter(tmp_path / "set", LAYOUT)
    for seed in range(3):
        writer.add(make_demo(seed))
    shutil.rmtree(tmp_path / "set/.staging/episode-000001")
    with pytest.raises(DataError, match=r"\.staging has a gap in its episodes: \[0, 2\]"):
        DatasetWriter(tmp_path / "set", LAYOUT)


def test_a_damaged_dataset_is_not_continued(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", range(2))
    (tmp_path / "set/data/chunk-000/file-000.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"file-000\.parquet is damaged"):
        DatasetWriter(tmp_path / "set", LAYOUT)


def test_a_staged_episode_that_was_damaged_is_named(tmp_path: Path) -> None:
    DatasetWriter(tmp_path / "set", LAYOUT).add(make_demo(0))
    (tmp_path / "set/.staging/episode-000000/episode.json").write_text("{")
    with pytest.raises(DataError, match=r"episode-000000/episode\.json is damaged"):
        DatasetWriter(tmp_path / "set", LAYOUT)


CRASH = """
import os, shutil, signal, sys
import pyarrow.dataset  # once, before the forks
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from synthetic import LAYOUT
from tailorbird.data.writer import DatasetWriter

def die_at(number):
    seen = 0
    def hook(event, args):
        nonlocal seen
        seen += event in ("os.rename", "os.rmdir", "os.remove")
        if seen > number:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

root, point, status = Path(sys.argv[1]), 0, 1
while status:  # until one lives to the end
    shutil.copytree(root / "staged", root / str(point))
    child = os.fork()
    if not child:
        writer = DatasetWriter(root / str(point), LAYOUT)
        die_at(point)
        writer.finish()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    point += 1
print(point)
"""


@pytest.mark.parametrize("first", [0, 1], ids=["new", "continued"])
def test_finishing_can_be_killed_at_any_step_and_repeated(tmp_path: Path, first: int) -> None:
    staged, demos = tmp_path / "staged", [make_demo(seed) for seed in range(first + 2)]
    if first:
        write_dataset(staged, range(first))
    writer = DatasetWriter(staged, LAYOUT)
    for demo in demos[first:]:
        writer.add(demo)
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    command = [sys.executable, "-c", CRASH, tmp_path, HERE]
    done = subprocess.run(command, env=unmeasured, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    points = int(done.stdout)
    assert 9 < points < 40
    uninterrupted, lengths = files(tmp_path / str(points - 1)), set()
    for point in range(points):
        root = tmp_path / str(point)
        if first or (root / "meta/info.json").exists():
            data = LeRobotDataset(root)
            lengths.add(len(data.episodes))
            np.testing.assert_array_equal(
                data.action, np.concatenate([demo.action for demo in demos[: len(data.episodes)]])
            )
        again = DatasetWriter(root, LAYOUT)
        assert [fact["seed"] for fact in again.facts] == list(range(first + 2)), "nothing lost or doubled"
        again.finish()
        assert files(root) == uninterrupted
    assert lengths == ({1, 3} if first else {2})
    expect(LeRobotDataset(root), demos, tmp_path)


def test_a_file_that_a_killed_writer_left_half_written_is_not_read(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write_dataset(root, range(2))
    before = LeRobotDataset(root).fingerprint
    for folder, suffix in (
        ("data/chunk-000", "parquet"),
        ("meta/episodes/chunk-000", "parquet"),
        ("meta", "json"),
    ):
        (root / folder / f".file-000.4711.{suffix}").write_bytes(b"half")
    assert len(LeRobotDataset(root).episodes) == 2
    assert LeRobotDataset(root).fingerprint == before
    write_dataset(root, range(2, 3))
    expect(LeRobotDataset(root), [make_demo(seed) for seed in range(3)], tmp_path)


FULL = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from synthetic import LAYOUT, make_demo
from tailorbird.data.writer import DatasetWriter
from tailorbird.errors import StorageError

writer = DatasetWriter(Path(sys.argv[1]), LAYOUT)
writer.add(make_demo(0))
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
try:
    writer.add(make_demo(1))
except StorageError as error:
    print(error)
"""


def test_an_episode_for_which_there_is_no_room_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    root = tmp_path / "set"
    done = subprocess.run([sys.executable, "-c", FULL, root, HERE], capture_output=True, text=True)
    assert f"cannot write {root}/.staging/episode-000001" in done.stdout, done.stderr
    assert "then run the same command again" in done.stdout
    writer = DatasetWriter(root, LAYOUT)
    assert [fact["seed"] for fact in writer.facts] == [0]
    writer.add(make_demo(1))
    writer.finish()
    expect(LeRobotDataset(root), [make_demo(0), make_demo(1)], tmp_path)


def test_a_writer_killed_while_it_adds_loses_only_that_episode(tmp_path: Path) -> None:
    root = tmp_path / "set"
    code = (
        f"import sys\nsys.path.insert(0, {HERE!r})\nfrom pathlib import Path\n"
        "from synthetic import LAYOUT, make_demo\nfrom tailorbird.data.writer import DatasetWriter\n"
        "writer = DatasetWriter(Path(sys.argv[1]), LAYOUT)\n"
        "for seed in range(10**6):\n    writer.add(make_demo(seed))\n    print(seed, flush=True)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, root], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    while int(writer.stdout.readline()) < 3:
        pass
    os.kill(writer.pid, signal.SIGKILL)
    confirmed = 3 + len(writer.stdout.read().split())
    writer.wait()
    writer.stdout.close()
    again = DatasetWriter(root, LAYOUT)
    kept = [fact["seed"] for fact in again.facts]
    assert kept == list(range(len(kept)))
    assert len(kept) in (confirmed + 1, confirmed + 2)
    again.finish()
    expect(LeRobotDataset(root), [make_demo(seed) for seed in kept], tmp_path)


def test_the_metadata_say_where_every_episode_lies(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", range(3))
    rows = pq.read_table(tmp_path / "set/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    demos = [make_demo(seed) for seed in range(3)]
    start = 0
    for row, demo in zip(rows, demos, strict=True):
        length = len(demo.state)
        assert (row["dataset_from_index"], row["dataset_to_index"]) == (start, start + length)
        for camera in CAMERAS:
            prefix = f"videos/{CAMERA}{camera}"
            assert row[f"{prefix}/from_timestamp"] == pytest.approx(start / FPS)
            assert row[f"{prefix}/to_timestamp"] == pytest.approx((start + length) / FPS)
        assert row["tasks"] == [demo.task]
        np.testing.assert_allclose(row[f"stats/{ACTION}/mean"], demo.action.astype(float).mean(0))
        start += length
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    assert info["features"][ACTION] == {"dtype": "float32", "shape": [2], "names": ["dx", "dy"]}
    assert info["features"][CAMERA + "wrist"]["shape"] == [24, 40, 3]
