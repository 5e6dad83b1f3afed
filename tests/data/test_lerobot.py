"""Reading LeRobot datasets: v3, v2.1, pictures in parquet, and every way in which one can be broken."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from synthetic import CAMERAS, FPS, LAYOUT, TASKS, make_demo, pictures, write_dataset
from tailorbird.data.lerobot import ACTION, CAMERA, STATE, LeRobotDataset, find_dataset
from tailorbird.data.stats import describe
from tailorbird.errors import DataError, MissingStats
from tailorbird.processing.normalize import Normalizer

DATA, EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
VIDEO = f"videos/{CAMERA}front/chunk-000/file-000.mp4"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes of 7, 10 and 13 frames. Shared: copy it before changing it."""
    root = tmp_path_factory.mktemp("written") / "set"
    write_dataset(root, range(3))
    return root


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "set"))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_v2(root: Path, seeds: range, as_pictures: bool = False) -> None:
    """The layout of LeRobot v2.1, two episodes a chunk; pictures as mp4, or as PNG inside the parquet."""
    demos = [make_demo(seed) for seed in seeds]
    kind = "image" if as_pictures else "video"
    features = {
        key: {**feature, "dtype": kind if feature["dtype"] == "video" else feature["dtype"]}
        for key, feature in LAYOUT.features().items()
    }
    info = {
        "codebase_version": "v2.1",
        "robot_type": "toy_arm",
        "fps": FPS,
        "chunks_size": 2,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": features,
    }
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    write_lines(root / "meta/tasks.jsonl", [{"task_index": i, "task": t} for i, t in enumerate(TASKS)][::-1])
    episodes, stats, start = [], [], 0
    for index, demo in enumerate(demos):
        length, chunk = len(demo.state), f"chunk-{index // 2:03d}"
        columns: dict[str, Any] = {
            STATE: pa.array(demo.state.tolist(), pa.list_(pa.float32())),
            ACTION: pa.array(demo.action.tolist(), pa.list_(pa.float32())),
            "timestamp": pa.array((np.arange(length) / FPS).astype(np.float32)),
            "frame_index": np.arange(length),
            "episode_index": np.full(length, index),
            "index": start + np.arange(length),
            "task_index": np.full(length, TASKS.index(demo.task)),
        }
        for camera, size in CAMERAS.items():
            if as_pictures:
                columns[CAMERA + camera] = [
                    {"bytes": as_png(frame), "path": None} for frame in pictures(length, *size, seeds[index])
                ]
                continue
            path = root / f"videos/{chunk}/{CAMERA}{camera}/episode_{index:06d}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(demo.videos[camera])
        path = root / f"data/{chunk}/episode_{index:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)
        episodes.append({"episode_index": index, "tasks": [demo.task], "length": length})
        described = {STATE: describe(demo.state), ACTION: describe(demo.action)}
        described |= {CAMERA + camera: demo.picture_stats[camera] for camera in CAMERAS}
        listed = {
            key: {name: value.tolist() for name, value in found.items() if not name.startswith("q")}
            for key, found in described.items()
        }
        stats.append({"episode_index": index, "stats": listed})
        start += length
    write_lines(root / "meta/episodes.jsonl", episodes)
    write_lines(root / "meta/episodes_stats.jsonl", stats)


def as_png(frame: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "PNG")
    return out.getvalue()


def test_version_2_1_gives_the_same_as_version_3(written: Path, tmp_path: Path) -> None:
    write_v2(tmp_path / "old", range(3))
    old, new = LeRobotDataset(tmp_path / "old"), LeRobotDataset(written)
    assert (old.version, old.fps, old.cameras, old.tasks) == ("v2.1", 10.0, new.cameras, new.tasks)
    for name in ("state", "action", "timestamp", "task_index", "episode_index"):
        np.testing.assert_array_equal(getattr(old, name), getattr(new, name))
    for before, after in zip(old.episodes, new.episodes, strict=True):
        assert (before.index, before.start, before.length) == (after.index, after.start, after.length)
        for camera in CAMERAS:
            frames = [np.stack(list(data.frames(e, camera))) for data, e in ((old, before), (new, after))]
            np.testing.assert_array_equal(*frames)
    for key in (STATE, ACTION, CAMERA + "front"):
        assert old.stats[key].keys() == {"min", "max", "mean", "std", "count"}
        for name in ("min", "max", "mean", "std", "count"):
            np.testing.assert_allclose(old.stats[key][name], new.stats[key][name], rtol=1e-6, atol=1e-7)


def test_pictures_may_lie_in_the_parquet_instead_of_a_video(tmp_path: Path) -> None:
    write_v2(tmp_path / "set", range(3), as_pictures=True)
    data = LeRobotDataset(tmp_path / "set")
    for episode in data.episodes:
        assert episode.videos == {}
        for camera, size in CAMERAS.items():
            exact = pictures(episode.length, *size, episode.index)
            np.testing.assert_array_equal(np.stack(list(data.frames(episode, camera))), exact)
            np.testing.assert_array_equal(next(data.frames(episode, camera, [5])), exact[5])
    assert data.observe(8).images["wrist"].shape == (24, 40, 3)


@pytest.mark.parametrize("left", [None, b"", b"no picture", 0.5])
def test_a_damaged_picture_in_the_parquet_is_one_clear_error(
    tmp_path: Path, left: bytes | float | None
) -> None:
    write_v2(tmp_path / "set", range(1), as_pictures=True)
    path, key = tmp_path / "set/data/chunk-000/episode_000000.parquet", CAMERA + "wrist"
    table = pq.read_table(path)
    cells = table[key].to_pylist()
    whole = cells[3]["bytes"]
    cells[3] = {
        "bytes": whole[: int(left * len(whole))] if isinstance(left, float) else left,
        "path": "3.png",
    }
    pq.write_table(table.set_column(table.column_names.index(key), key, pa.array(cells)), path)
    data = LeRobotDataset(tmp_path / "set")
    with pytest.raises(
        DataError, match=r"000000\.parquet has no readable picture of wrist at frame 3 of episode 0"
    ):
        list(data.frames(data.episodes[0], "wrist"))


def test_tasks_may_be_named_as_pandas_or_as_people_name_them(copied: Path) -> None:
    for column in ("task", "__index_level_0__"):
        table = pa.table({column: list(reversed(TASKS)), "task_index": [1, 0]})
        pq.write_table(table, copied / "meta/tasks.parquet")
        assert LeRobotDataset(copied).tasks == list(TASKS)


def test_frames_found_by_timestamp_are_those_of_a_sequential_decode(recorded: Path) -> None:
    data = LeRobotDataset(recorded)
    rng = np.random.default_rng(0)
    for episode in data.episodes:
        everything = np.stack(list(data.frames(episode, "corner2")))
        assert everything.shape == (episode.length, 48, 48, 3)
        for step in rng.choice(episode.length, 3):
            np.testing.assert_array_equal(next(data.frames(episode, "corner2", [step])), everything[step])
            seen = data.observe(episode.start + int(step))
            np.testing.assert_array_equal(seen.images["corner2"], everything[step])
        steps = sorted(rng.choice(episode.length, 6, replace=False).tolist())
        np.testing.assert_array_equal(
            np.stack(list(data.frames(episode, "corner2", steps))), everything[steps]
        )


def test_an_observation_is_what_was_known_at_its_row(written: Path) -> None:
    data, demo = LeRobotDataset(written), make_demo(1)
    seen = data.observe(7 + 4)  # the first episode has 7 frames
    np.testing.assert_array_equal(seen.state, demo.state[4])
    assert seen.task == demo.task
    assert seen.time_s == pytest.approx(0.4)
    assert {name: picture.shape for name, picture in seen.images.items()} == {
        "front": (32, 48, 3),
        "wrist": (24, 40, 3),
    }


def test_a_chunk_repeats_the_last_action_past_the_end_of_its_episode_and_says_so(written: Path) -> None:
    data = LeRobotDataset(written)
    first, second = make_demo(0).action, make_demo(1).action
    actions, valid = data.chunk(np.array([0, 5, 6, 7]), 4)
    assert actions.shape == (4, 4, 2)
    np.testing.assert_array_equal(actions[0], first[:4])
    np.testing.assert_array_equal(actions[1], first[[5, 6, 6, 6]])
    np.testing.assert_array_equal(actions[2], first[[6, 6, 6, 6]])
    np.testing.assert_array_equal(actions[3], second[:4])
    assert valid.tolist() == [[True] * 4, [True, True, False, False], [True, False, False, False], [True] * 4]


def test_a_sample_is_an_observation_with_its_chunk(written: Path) -> None:
    data = LeRobotDataset(written)
    seen, actions, valid = data.sample(15, 3)
    np.testing.assert_array_equal(seen.state, data.state[15])
    np.testing.assert_array_equal(actions, data.action[[15, 16, 16]])
    assert valid.tolist() == [True, True, False]


def test_numbers_of_one_component_and_of_wider_types_are_vectors_too(copied: Path) -> None:
    table = pq.read_table(copied / DATA)
    exact = np.linspace(0, 1, len(table))
    table = table.set_column(table.column_names.index(ACTION), ACTION, pa.array(exact))
    pq.write_table(table, copied / DATA)
    data = LeRobotDataset(copied)
    assert data.action.dtype == np.float32
    np.testing.assert_array_equal(data.action, exact.astype(np.float32)[:, None])


def test_statistics_normalise_and_missing_ones_are_named(written: Path) -> None:
    data = LeRobotDataset(written)
    normal = Normalizer.from_stats(data.stats, ACTION, str(written))
    np.testing.assert_allclose(normal.mean, data.action.astype(float).mean(0))
    np.testing.assert_allclose(normal.std, data.action.astype(float).std(0))
    with pytest.raises(MissingStats, match=r"no mean and std for 'effort'.*observation\.state"):
        Normalizer.from_stats(data.stats, "effort", str(written))


def test_other_data_have_another_fingerprint(written: Path, copied: Path) -> None:
    assert LeRobotDataset(copied).fingerprint == LeRobotDataset(written).fingerprint
    write_dataset(copied, range(3, 4))
    assert LeRobotDataset(copied).fingerprint != LeRobotDataset(written).fingerprint


def test_a_camera_that_does_not_exist_is_refused_with_those_that_do(written: Path) -> None:
    data = LeRobotDataset(written)
    with pytest.raises(DataError, match=r"no camera 'top' in .*: there are front, wrist"):
        next(data.frames(data.episodes[0], "top"))


def cut(name: str, keep: float = 0.5) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        data = (root / name).read_bytes()
        (root / name).write_bytes(data[: int(keep * len(data))])

    return damage


def lose(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def spoil(column: str, value: float) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        table = pq.read_table(root / DATA)
        values = np.stack(table[column].to_numpy())
        values[11, 1] = values[14, 0] = value
        flat = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        pq.write_table(table.set_column(table.column_names.index(column), column, flat), root / DATA)

    return damage


def drop_rows(root: Path) -> None:
    pq.write_table(pq.read_table(root / DATA)[:-2], root / DATA)


def drop_episode(root: Path) -> None:
    pq.write_table(pq.read_table(root / EPISODES)[:-1], root / EPISODES)


def drop_column(root: Path) -> None:
    pq.write_table(pq.read_table(root / DATA).drop_columns([ACTION]), root / DATA)


def set_info(**changes: Any) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        info = json.loads((root / "meta/info.json").read_text())
        (root / "meta/info.json").write_text(json.dumps({**info, **changes}))

    return damage


def swap_episodes(root: Path) -> None:
    table = pq.read_table(root / DATA)
    pq.write_table(table.sort_by([("episode_index", "descending")]), root / DATA)


def name_a_stranger(root: Path) -> None:
    table = pq.read_table(root / DATA)
    tasks = pa.array([99] * len(table))
    pq.write_table(table.set_column(table.column_names.index("task_index"), "task_index", tasks), root / DATA)


def overwrite(root: Path) -> None:
    data = (root / VIDEO).read_bytes()
    where = data.index(b"mdat") + 800
    (root / VIDEO).write_bytes(data[:where] + bytes(500) + data[where + 500 :])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose("meta/info.json"), r"holds no finished LeRobot dataset.*run the same record command again"),
        (cut("meta/info.json"), r"info\.json is damaged.*Restore it, or make it again"),
        (set_info(codebase_version="v1.6"), r"has format v1\.6; this reader knows v3\.0 and v2\.1"),
        (lose("meta/tasks.parquet"), r"tasks\.parquet is missing: fetch or record the dataset again"),
        (cut("meta/tasks.parquet"), r"tasks\.parquet is damaged .*: fetch or record the dataset again"),
        (cut(EPISODES), r"episodes/chunk-000/file-000\.parquet is damaged"),
        (lose(EPISODES), r"meta/episodes lists 0 episodes, info\.json 3: fetch the dataset again"),
        (drop_episode, r"meta/episodes lists 2 episodes, info\.json 3: fetch the dataset again"),
        (cut(DATA), r"data/chunk-000/file-000\.parquet is damaged .*fetch or record the dataset again"),
        (cut(DATA, 0.0), r"data/chunk-000/file-000\.parquet is damaged"),
        (lose(DATA), r"data/chunk-000/file-000\.parquet is missing: fetch or record the dataset again"),
        (drop_rows, r"data has 28 rows, its episodes need 30: a file is cut or missing"),
        (drop_column, r"has no 'action'; it has observation\.state, timestamp"),
        (spoil(ACTION, np.nan), r"action of episode 1, frame 4 in .* nan\]: 2 rows are not finite. Record"),
        (set_info(fps=None), r"meta is not as the format has it \(TypeError"),
        (set_info(data_path="../../{chunk_index:03d}"), r"data_path leads out of the dataset, to "),
        (set_info(data_path="/etc/passwd"), r"data_path leads out of the dataset, to /etc/passwd"),
        (set_info(data_path="{chunk_index:999999999d}"), r"\{chunk_index:999999999d\} is missing"),
        (swap_episodes, r"has its episodes in another order"),
        (name_a_stranger, r"speaks of tasks that .*meta does not name"),
        (spoil(STATE, np.inf), r"observation\.state of episode 1, frame 4 in .*inf.*2 rows are not finite"),
    ],
)
def test_damaged_numbers_are_one_clear_error(
    copied: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(copied)
    with pytest.raises(DataError, match=message) as caught:
        LeRobotDataset(copied)
    assert str(copied) in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose(VIDEO), r"file-000\.mp4 is missing: fetch or record the dataset again"),
        (cut(VIDEO), r"file-000\.mp4 is not a readable video: .*Fetch or record it again"),
        (cut(VIDEO, 0.0), r"file-000\.mp4 is not a readable video: .*Fetch or record it again"),
        (overwrite, r"file-000\.mp4 is not a readable video: .*Fetch or record it again"),
        (
            lambda root: (root / VIDEO).write_bytes(make_demo(0).videos["front"]),
            r"file-000\.mp4 has no frame at 0\.7000 s .*: it is cut or damaged",
        ),
    ],
)
def test_damaged_pictures_are_one_clear_error(
    copied: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(copied)
    data = LeRobotDataset(copied)
    with pytest.raises(DataError, match=message) as caught:
        [list(data.frames(episode, "front")) for episode in data.episodes]
    assert str(copied) in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose("meta/tasks.jsonl"), r"tasks\.jsonl is missing: fetch the dataset again"),
        (cut("meta/episodes.jsonl", 0.9), r"episodes\.jsonl is damaged.*Fetch the dataset again"),
        (lose("data/chunk-001/episode_000002.parquet"), r"episode_000002\.parquet is missing"),
        (cut("meta/episodes_stats.jsonl", 0.9), r"episodes_stats\.jsonl is damaged"),
    ],
)
def test_a_damaged_dataset_of_version_2_1_is_one_clear_error(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    write_v2(tmp_path / "set", range(3))
    damage(tmp_path / "set")
    with pytest.raises(DataError, match=message):
        _ = LeRobotDataset(tmp_path / "set").stats


def test_missing_statistics_of_version_3_are_named(copied: Path) -> None:
    (copied / "meta/stats.json").unlink()
    data = LeRobotDataset(copied)
    with pytest.raises(DataError, match=r"stats\.json does not exist"):
        _ = data.stats


def test_a_dataset_without_episodes_is_refused(copied: Path) -> None:
    set_info(total_episodes=0)(copied)
    with pytest.raises(DataError, match="holds no episode: fetch or record the dataset again"):
        LeRobotDataset(copied)


def test_a_folder_is_found_as_it_is(written: Path) -> None:
    assert find_dataset(written) == written
    assert find_dataset(str(written)) == written


@pytest.mark.parametrize("name", ["/nowhere/at/all", "one", "a/b/c", "/user"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(name: str) -> None:
    with pytest.raises(DataError, match=f"{name} is no folder here, and no hub id of the form user/name"):
        find_dataset(name)
