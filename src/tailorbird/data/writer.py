"""Write LeRobot v3 datasets so that a killed process costs at most the episode it was working on.

Each finished episode is a folder of its own under `.staging/`. `finish` joins the staged episodes into the
few large files of the format, metadata last; until then a reader sees the dataset as it was before.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tailorbird.data.lerobot import ACTION, CAMERA, STATE, LeRobotDataset
from tailorbird.data.stats import Stats, describe, merge
from tailorbird.data.video import join, measure
from tailorbird.errors import DataError
from tailorbird.storage import new_file, new_folder, read_json, write_json

FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
EPISODES = f"meta/episodes/{FILE.format(chunk_index=0, file_index=0)}.parquet"
CHUNK_FILES = 1000  # files in one chunk folder
DATA_MB, VIDEO_MB = 100, 200  # size at which a new file is begun


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What every episode of a dataset has in common."""

    fps: int
    robot: str
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    cameras: dict[str, tuple[int, int]]  # name -> height, width in px

    def features(self) -> dict[str, Any]:
        def vector(names: Sequence[str]) -> dict[str, Any]:
            return {"dtype": "float32", "shape": [len(names)], "names": list(names)}

        def scalar(dtype: str) -> dict[str, Any]:
            return {"dtype": dtype, "shape": [1], "names": None}

        pictures = {
            CAMERA + name: {
                "dtype": "video",
                "shape": [height, width, 3],
                "names": ["height", "width", "channels"],
                "info": {
                    "video.height": height,
                    "video.width": width,
                    "video.codec": "h264",
                    "video.pix_fmt": "yuv420p",
                    "video.is_depth_map": False,
                    "video.fps": self.fps,
                    "video.channels": 3,
                    "has_audio": False,
                },
            }
            for name, (height, width) in self.cameras.items()
        }
        indices = {name: scalar("int64") for name in ("frame_index", "episode_index", "index", "task_index")}
        return {
            STATE: vector(self.state_names),
            ACTION: vector(self.action_names),
            **pictures,
            "timestamp": scalar("float32"),
            **indices,
        }


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """One recorded episode, on its way to a dataset.

    facts: small JSON values to keep with the episode (its seed, say); they become columns
        `tailorbird/<name>`.
    """

    task: str
    state: NDArray[np.float32]  # (T, state_dim)
    action: NDArray[np.float32]  # (T, A)
    videos: dict[str, bytes]  # camera -> mp4 of T frames, from data.video.encode
    picture_stats: dict[str, Stats]  # camera -> from data.stats.describe_frames
    facts: dict[str, Any] = field(default_factory=dict)


class DatasetWriter:
    """Continues whatever the folder holds: nothing, staged episodes, a finished dataset, or both."""

    def __init__(
        self, root: Path, layout: Layout, *, data_mb: float = DATA_MB, video_mb: float = VIDEO_MB
    ) -> None:
        self.root, self.layout = root, layout
        self._limits = data_mb * 1e6, video_mb * 1e6
        self._staging = root / ".staging"
        self._rows: list[dict[str, Any]] = []  # episode metadata of what is finished
        if (root / "meta/info.json").exists():
            info = read_json(root / "meta/info.json")
            if info["features"] != json.loads(json.dumps(layout.features())) or info["fps"] != layout.fps:
                raise DataError(
                    f"{root} holds a dataset with other features or another rate: choose another folder"
                )
            LeRobotDataset(root)  # refuses a damaged one
            done = pq.read_table(root / EPISODES).to_pylist()
            if len(done) < info["total_episodes"]:
                raise DataError(
                    f"{root} has more metadata than {EPISODES}: this writer continues only its own sets"
                )
            self._rows = done[: info["total_episodes"]]  # the rest was being added when the writer was killed
        self._staged: list[dict[str, Any]] = []
        for folder in sorted(self._staging.glob("episode-*")):
            if _index(folder) < len(self._rows):
                shutil.rmtree(folder)  # finished, but killed before or during the tidying up
            else:
                self._staged.append(self._open_staged(folder))
        indices = [episode["index"] for episode in self._staged]
        if indices != list(range(len(self._rows), len(self._rows) + len(indices))):
            raise DataError(
                f"{self._staging} has a gap in its episodes: {indices}. Delete it and record them again"
            )

    @property
    def facts(self) -> list[dict[str, Any]]:
        """The facts of every episode so far, finished or staged, in order."""
        mark = "tailorbird/"
        done = [
            {k.removeprefix(mark): v for k, v in row.items() if k.startswith(mark) and v is not None}
            for row in self._rows
        ]
        return done + [episode["facts"] for episode in self._staged]

    def add(self, demo: Demonstration) -> None:
        """Stage one episode. When this returns it is safe on the disk.

        Raises:
            DataError: lengths differ, a size is not the layout's, or a number is not finite.
            StorageError: the disk is full or refuses.
        """
        length = len(demo.state)
        wanted = {
            STATE: (length, len(self.layout.state_names)),
            ACTION: (length, len(self.layout.action_names)),
        }
        for name, values in ((STATE, demo.state), (ACTION, demo.action)):
            if values.shape != wanted[name] or length == 0:
                raise DataError(
                    f"{name} of this episode has shape {values.shape}, the dataset needs {wanted[name]}"
                )
            if not np.isfinite(values).all():
                step = int((~np.isfinite(values).all(axis=1)).argmax())
                raise DataError(
                    f"{name} at step {step} is {values[step]}: not finite, the episode is refused"
                )
        if (
            demo.videos.keys() != self.layout.cameras.keys()
            or demo.picture_stats.keys() != demo.videos.keys()
        ):
            raise DataError(
                f"this episode has cameras {sorted(demo.videos)}, the dataset {sorted(self.layout.cameras)}"
            )
        for camera, (height, width) in self.layout.cameras.items():
            found = measure(demo.videos[camera])
            if found != (length, height, width):
                raise DataError(
                    f"the video of {camera} has (frames, height, width) {found}, "
                    f"this episode needs {(length, height, width)}"
                )
        index = len(self._rows) + len(self._staged)
        folder = self._staging / f"episode-{index:06d}"
        with new_folder(folder) as temporary:
            columns = {STATE: _vectors(demo.state), ACTION: _vectors(demo.action)}
            pq.write_table(pa.table(columns), temporary / "data.parquet")
            for camera, data in demo.videos.items():
                (temporary / f"{camera}.mp4").write_bytes(data)
            stats = {camera: _listed(found) for camera, found in demo.picture_stats.items()}
            record = {"task": demo.task, "length": length, "facts": demo.facts, "picture_stats": stats}
            (temporary / "episode.json").write_text(json.dumps(record))
        self._staged.append(self._open_staged(folder))

    def finish(self) -> None:
        """Join the staged episodes into the dataset. Safe to repeat after a crash at any point."""
        if not self._staged:
            return
        tasks = self._all_tasks()
        rows = list(self._rows)
        new = self._index_rows(tasks)
        next_data = 1 + max((self._file_number(row, "data") for row in rows), default=-1)
        for number, group in enumerate(
            self._grouped([e["data_bytes"] for e in self._staged], self._limits[0])
        ):
            place = _place(next_data + number)
            table = pa.concat_tables([self._rows_of(self._staged[i], new[i], tasks) for i in group])
            with new_file(self.root / f"data/{FILE.format(**place)}.parquet") as temporary:
                pq.write_table(table, temporary)
            for i in group:
                new[i] |= {f"data/{name}": value for name, value in place.items()}
        for camera in self.layout.cameras:
            self._join_videos(camera, new)
        rows += new
        self._write_meta(rows, tasks)
        for episode in self._staged:
            shutil.rmtree(episode["folder"])
        self._rows, self._staged = rows, []
        shutil.rmtree(self._staging)

    def _join_videos(self, camera: str, new: list[dict[str, Any]]) -> None:
        prefix = f"videos/{CAMERA}{camera}"
        next_file = 1 + max((self._file_number(row, prefix) for row in self._rows), default=-1)
        sizes = [(e["folder"] / f"{camera}.mp4").stat().st_size for e in self._staged]
        for number, group in enumerate(self._grouped(sizes, self._limits[1])):
            place = _place(next_file + number)
            with new_file(self.root / f"{prefix}/{FILE.format(**place)}.mp4") as temporary:
                join([self._staged[i]["folder"] / f"{camera}.mp4" for i in group], self.layout.fps, temporary)
            frames = 0
            for i in group:
                begin, frames = frames, frames + new[i]["length"]
                new[i] |= {f"{prefix}/{name}": value for name, value in place.items()}
                new[i] |= {
                    f"{prefix}/from_timestamp": begin / self.layout.fps,
                    f"{prefix}/to_timestamp": frames / self.layout.fps,
                }

    def _index_rows(self, tasks: list[str]) -> list[dict[str, Any]]:
        start = self._rows[-1]["dataset_to_index"] if self._rows else 0
        rows = []
        for episode in self._staged:
            length = episode["length"]
            row = {
                "episode_index": episode["index"],
                "tasks": [episode["task"]],
                "length": length,
                "dataset_from_index": start,
                "dataset_to_index": start + length,
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
                **{f"tailorbird/{name}": value for name, value in episode["facts"].items()},
            }
            table = self._rows_of(episode, row, tasks)
            stats = {name: describe(_array(table[name])) for name in table.column_names}
            stats |= {CAMERA + camera: found for camera, found in episode["picture_stats"].items()}
            row |= {
                f"stats/{key}/{name}": v.tolist() for key, found in stats.items() for name, v in found.items()
            }
            rows.append(row)
            start += length
        return rows

    def _rows_of(self, episode: dict[str, Any], row: dict[str, Any], tasks: list[str]) -> pa.Table:
        length = episode["length"]
        steps = np.arange(length)
        table = pq.read_table(episode["folder"] / "data.parquet")
        columns: dict[str, NDArray[Any]] = {
            "timestamp": (steps / self.layout.fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(length, episode["index"]),
            "index": row["dataset_from_index"] + steps,
            "task_index": np.full(length, tasks.index(episode["task"])),
        }
        for name, values in columns.items():
            table = table.append_column(name, pa.array(values))
        return table

    def _write_meta(self, rows: list[dict[str, Any]], tasks: list[str]) -> None:
        meta = self.root / "meta"
        names = dict.fromkeys(name for row in rows for name in row)  # facts may differ between episodes
        with new_file(meta / "tasks.parquet") as temporary:
            pq.write_table(_tasks_table(tasks), temporary)
        with new_file(self.root / EPISODES) as temporary:
            pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), temporary)
        write_json(meta / "stats.json", {key: _listed(found) for key, found in self._all_stats(rows).items()})
        info = {
            "codebase_version": "v3.0",
            "robot_type": self.layout.robot,
            "total_episodes": len(rows),
            "total_frames": rows[-1]["dataset_to_index"],
            "total_tasks": len(tasks),
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": DATA_MB,
            "video_files_size_in_mb": VIDEO_MB,
            "fps": self.layout.fps,
            "splits": {"train": f"0:{len(rows)}"},
            "data_path": f"data/{FILE}.parquet",
            "video_path": f"videos/{{video_key}}/{FILE}.mp4",
            "features": self.layout.features(),
        }
        write_json(meta / "info.json", info)

    def _all_stats(self, rows: list[dict[str, Any]]) -> dict[str, Stats]:
        """Exact over all rows for numbers, merged from the episodes for pictures."""
        numbers = dict.fromkeys(self._file_number(row, "data") for row in rows)
        files = [self.root / f"data/{FILE.format(**_place(number))}.parquet" for number in numbers]
        table = pa.concat_tables([pq.read_table(file) for file in files])
        stats = {name: describe(_array(table[name])) for name in table.column_names}
        for camera in self.layout.cameras:
            prefix = f"stats/{CAMERA}{camera}/"
            parts = [
                {k.removeprefix(prefix): np.array(v) for k, v in r.items() if k.startswith(prefix)}
                for r in rows
            ]
            stats[CAMERA + camera] = merge(parts)
        return stats

    def _all_tasks(self) -> list[str]:
        tasks = [task for row in self._rows for task in row["tasks"]]
        return list(dict.fromkeys(tasks + [episode["task"] for episode in self._staged]))

    def _open_staged(self, folder: Path) -> dict[str, Any]:
        episode: dict[str, Any] = read_json(folder / "episode.json")
        stats = episode["picture_stats"].items()
        episode["picture_stats"] = {c: {k: np.asarray(v) for k, v in found.items()} for c, found in stats}
        size = (folder / "data.parquet").stat().st_size
        return {**episode, "folder": folder, "index": _index(folder), "data_bytes": size}

    @staticmethod
    def _grouped(sizes: Sequence[int], limit: float) -> Iterator[list[int]]:
        group: list[int] = []
        total = 0
        for i, size in enumerate(sizes):
            if group and total + size > limit:
                yield group
                group, total = [], 0
            group.append(i)
            total += size
        yield group

    @staticmethod
    def _file_number(row: dict[str, Any], prefix: str) -> int:
        return int(row[f"{prefix}/chunk_index"]) * CHUNK_FILES + int(row[f"{prefix}/file_index"])


def _index(folder: Path) -> int:
    return int(folder.name.removeprefix("episode-"))


def _place(number: int) -> dict[str, int]:
    return {"chunk_index": number // CHUNK_FILES, "file_index": number % CHUNK_FILES}


def _vectors(values: NDArray[np.float32]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float32).ravel()), values.shape[1])


def _array(column: pa.ChunkedArray) -> NDArray[Any]:
    joined = column.combine_chunks()
    if pa.types.is_fixed_size_list(joined.type):
        return joined.flatten().to_numpy().reshape(len(joined), -1)
    return joined.to_numpy()


def _listed(stats: Stats) -> dict[str, Any]:
    return {name: value.tolist() for name, value in stats.items()}


def _tasks_table(tasks: list[str]) -> pa.Table:
    """Readers of the format expect the sentences as the index of a pandas frame; say so without pandas."""
    name = "__index_level_0__"
    table = pa.table({"task_index": list(range(len(tasks))), name: tasks})
    column = {
        "field_name": name,
        "name": None,
        "pandas_type": "unicode",
        "numpy_type": "object",
        "metadata": None,
    }
    count = {
        **column,
        "field_name": "task_index",
        "name": "task_index",
        "pandas_type": "int64",
        "numpy_type": "int64",
    }
    pandas = {
        "index_columns": [name],
        "column_indexes": [],
        "columns": [count, column],
        "pandas_version": "2.0.0",
    }
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})
