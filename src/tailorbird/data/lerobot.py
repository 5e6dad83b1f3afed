"""Read LeRobot datasets, v3 and v2.1, from a folder or the hub.

Layout and traps follow huggingface/lerobot 0.4 to 0.6: v3 joins several episodes in one parquet and one mp4
file, v2.1 has one of each an episode.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from tailorbird.data.stats import Stats, merge
from tailorbird.data.video import Frame, decode
from tailorbird.errors import DataError
from tailorbird.storage import read_json
from tailorbird.wire import Observation

STATE, ACTION, CAMERA = "observation.state", "action", "observation.images."
VERSIONS = ("v3.0", "v2.1")


@dataclass(frozen=True, kw_only=True)
class Episode:
    """Where one episode lies: rows [start, start + length), a file, and a place in each camera's video."""

    index: int
    start: int
    length: int
    data: Path  # the parquet that holds its rows, others' too in v3
    videos: dict[str, tuple[Path, float]]  # camera -> file, second at which the episode begins in it


def _read_table(path: Path, **part: Any) -> pa.Table:
    """The table, or the columns and rows that `part` names for pyarrow."""
    try:
        return pq.read_table(path, **part)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: fetch or record the dataset again") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged ({error}): fetch or record the dataset again") from error


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except FileNotFoundError:
        raise DataError(f"{path} is missing: fetch the dataset again") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is damaged: {error}. Fetch the dataset again") from error


def _visible(folder: Path, pattern: str) -> list[Path]:
    """Sorted, without the hidden leftovers of killed writers."""
    return sorted(file for file in folder.glob(pattern) if not file.name.startswith("."))


def _as_arrays(stats: dict[str, Any]) -> Stats:
    return {name: np.asarray(value, np.float64) for name, value in stats.items()}


def find_dataset(path_or_id: str | Path, revision: str | None = None) -> Path:
    """A folder as it is; user/name that is no folder is fetched from the hub, and cached."""
    path = Path(path_or_id)
    if path.exists():
        return path
    if len(path.parts) != 2 or path.is_absolute():
        raise DataError(f"{path_or_id} is no folder here, and no hub id of the form user/name")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(path_or_id), repo_type="dataset", revision=revision))
    except Exception as error:  # the library, and what it stands on, raise whatever they like
        raise DataError(f"{path_or_id} is no folder here, and the hub did not give it: {error}") from error


class LeRobotDataset:
    """Low-dimensional columns in memory, pictures decoded on demand.

    Raises:
        DataError: a file is missing, cut or inconsistent; a state or an action is not finite. The message
            names the file and what to do.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        if not (root / "meta/info.json").exists():
            raise DataError(
                f"{root} holds no finished LeRobot dataset: meta/info.json is missing. If recording was "
                "interrupted, run the same record command again"
            )
        try:
            self._read_meta(read_json(root / "meta/info.json"))
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{root}/meta is not as the format has it ({type(error).__name__}: {error}): "
                "fetch or record the dataset again"
            ) from error
        self._table = self._load_rows()
        self.state, self.action = self._vectors(STATE), self._vectors(ACTION)
        self.task_index = self._table["task_index"].to_numpy()
        self.timestamp = self._table["timestamp"].to_numpy()
        self.episode_index = np.repeat(np.arange(len(self.episodes)), [e.length for e in self.episodes])
        if self.task_index.min() < 0 or self.task_index.max() >= len(self.tasks):
            raise DataError(f"{root}/data speaks of tasks that {root}/meta does not name: fetch it again")

    def _read_meta(self, info: dict[str, Any]) -> None:
        root, self.info = self.root, info
        self.version: str = self.info.get("codebase_version", "none")
        if self.version not in VERSIONS:
            raise DataError(f"{root} has format {self.version}; this reader knows {' and '.join(VERSIONS)}")
        self.fps = float(self.info["fps"])
        pictures = {
            k: f["dtype"] for k, f in self.info["features"].items() if f["dtype"] in ("video", "image")
        }
        self._camera_keys = {key.removeprefix(CAMERA): key for key in pictures}
        self._as_video = {camera for camera, key in self._camera_keys.items() if pictures[key] == "video"}
        self.cameras = tuple(self._camera_keys)
        is_v3 = self.version == "v3.0"
        self.tasks = self._tasks_v3() if is_v3 else self._tasks_v2()
        self.episodes = self._episodes_v3() if is_v3 else self._episodes_v2()

    def __len__(self) -> int:
        return len(self._table)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the metadata, and of the names and sizes of the other files."""
        digest = hashlib.sha256()
        for file in [f for f in _visible(self.root / "meta", "**/*") if f.is_file()]:
            digest.update(file.read_bytes())
        data = {episode.data for episode in self.episodes}
        videos = {path for episode in self.episodes for path, _ in episode.videos.values()}
        for file in sorted(data | videos):
            digest.update(
                f"{file.relative_to(self.root)} {file.stat().st_size if file.exists() else -1}".encode()
            )
        return digest.hexdigest()

    @cached_property
    def stats(self) -> dict[str, Stats]:
        """By feature, from meta/stats.json or, in v2.1, merged from meta/episodes_stats.jsonl."""
        if self.version == "v3.0":
            return {key: _as_arrays(value) for key, value in read_json(self.root / "meta/stats.json").items()}
        rows = [line["stats"] for line in _read_lines(self.root / "meta/episodes_stats.jsonl")]
        return {key: merge([_as_arrays(row[key]) for row in rows]) for key in rows[0]}

    def observe(self, row: int) -> Observation:
        """The observation at a row, pictures decoded by timestamp."""
        episode = self.episodes[self.episode_index[row]]
        step = row - episode.start
        return Observation(
            images={camera: next(self.frames(episode, camera, [step])) for camera in self.cameras},
            state=self.state[row],
            task=self.tasks[self.task_index[row]],
            time_s=float(self.timestamp[row]),
        )

    def chunk(self, rows: NDArray[np.int64], length: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The actions from each row on, and which of them lie inside the episode.

        Returns:
            actions (B, length, A), the last one repeated past the end, and valid (B, length).
        """
        ends = self._ends[self.episode_index[rows]]
        wanted = rows[:, None] + np.arange(length)  # (B, length)
        return self.action[np.minimum(wanted, ends[:, None])], wanted <= ends[:, None]

    def sample(self, row: int, chunk: int) -> tuple[Observation, NDArray[np.float32], NDArray[np.bool_]]:
        """One training example: observation, actions (chunk, A), and their validity (chunk,)."""
        actions, valid = self.chunk(np.array([row]), chunk)
        return self.observe(row), actions[0], valid[0]

    def frames(self, episode: Episode, camera: str, steps: Sequence[int] | None = None) -> Iterator[Frame]:
        """Yield the pictures of one camera at the given steps, ascending; default: the whole episode."""
        steps = range(episode.length) if steps is None else steps
        if camera not in self.cameras:
            raise DataError(f"no camera {camera!r} in {self.root}: there are {', '.join(self.cameras)}")
        if camera in self._as_video:
            path, start_s = episode.videos[camera]
            times = [start_s + float(self.timestamp[episode.start + step]) for step in steps]
            yield from decode(path, times)
            return
        key = self._camera_keys[camera]
        rows = [("episode_index", "==", episode.index)]
        column = _read_table(episode.data, columns=[key], filters=rows)[key]
        for step in steps:
            data = column[step].as_py()["bytes"]
            try:
                yield np.asarray(Image.open(io.BytesIO(data or b"")).convert("RGB"))
            except (OSError, Image.DecompressionBombError) as error:
                raise DataError(
                    f"{episode.data} has no readable picture of {camera} at frame {step} of episode "
                    f"{episode.index}: {error}. Fetch or record it again"
                ) from error

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.array([episode.start + episode.length - 1 for episode in self.episodes])

    def _tasks_v3(self) -> list[str]:
        rows = _read_table(self.root / "meta/tasks.parquet").to_pylist()
        names = [
            name for name in rows[0] if name != "task_index"
        ]  # `task`, or `__index_level_0__` from pandas
        return [row[names[0]] for row in sorted(rows, key=lambda row: row["task_index"])]

    def _tasks_v2(self) -> list[str]:
        rows = _read_lines(self.root / "meta/tasks.jsonl")
        return [row["task"] for row in sorted(rows, key=lambda row: row["task_index"])]

    def _episodes_v3(self) -> list[Episode]:
        """What info.json counts: rows beyond that belong to a `finish` that is still under way."""
        files = _visible(self.root / "meta/episodes", "*/*.parquet")
        rows = [row for file in files for row in _read_table(file).to_pylist()]
        rows = sorted(rows, key=lambda row: row["episode_index"])[: self.info["total_episodes"]]
        if len(rows) != self.info["total_episodes"]:
            raise DataError(
                f"{self.root}/meta/episodes lists {len(rows)} episodes, info.json "
                f"{self.info['total_episodes']}: fetch the dataset again, or repeat the record command"
            )

        def place(row: dict[str, Any], pattern: str, prefix: str, **names: str) -> Path:
            where = {f"{name}_index": row[f"{prefix}/{name}_index"] for name in ("chunk", "file")}
            return self._place(pattern, **where, **names)

        episodes = []
        for row in rows:
            videos = {}
            for camera in self._as_video:
                key = self._camera_keys[camera]
                path = place(row, "video_path", f"videos/{key}", video_key=key)
                videos[camera] = (path, row[f"videos/{key}/from_timestamp"])
            start, end = row["dataset_from_index"], row["dataset_to_index"]
            data = place(row, "data_path", "data")
            episode = Episode(
                index=row["episode_index"], start=start, length=end - start, data=data, videos=videos
            )
            episodes.append(episode)
        return episodes

    def _place(self, pattern: str, **names: int | str) -> Path:
        """A file named by a pattern of info.json. It comes from strangers: the file must lie inside."""

        def fill(hole: re.Match[str]) -> str:
            return str(names[hole[1]]).zfill(int(hole[2] or 0))

        text = re.sub(r"\{(\w+)(?::0(\d)d)?\}", fill, self.info[pattern])
        path = Path(os.path.normpath(self.root / text))
        if not path.is_relative_to(os.path.normpath(self.root)):
            raise DataError(f"{self.root}/meta/info.json: {pattern} leads out of the dataset, to {path}")
        return path

    def _episodes_v2(self) -> list[Episode]:
        episodes, start = [], 0
        for row in sorted(
            _read_lines(self.root / "meta/episodes.jsonl"), key=lambda row: row["episode_index"]
        ):
            index = row["episode_index"]
            where = {"episode_chunk": index // self.info["chunks_size"], "episode_index": index}
            videos = {
                camera: (self._place("video_path", **where, video_key=self._camera_keys[camera]), 0.0)
                for camera in self._as_video
            }
            data = self._place("data_path", **where)
            episodes.append(Episode(index=index, start=start, length=row["length"], data=data, videos=videos))
            start += row["length"]
        return episodes

    def _load_rows(self) -> pa.Table:
        files = list(dict.fromkeys(episode.data for episode in self.episodes))
        if not files:
            raise DataError(f"{self.root} holds no episode: fetch or record the dataset again")
        names = None  # all; but pictures among them stay on the disk
        if len(self._as_video) < len(self.cameras):
            names = [name for name in self.info["features"] if name not in self._camera_keys.values()]
        parts = [_read_table(file, columns=names) for file in files]
        table = pa.concat_tables(parts, promote_options="permissive")
        expected = sum(episode.length for episode in self.episodes)
        if len(table) != expected:
            raise DataError(
                f"{self.root}/data has {len(table)} rows, its episodes need {expected}: "
                "a file is cut or missing, fetch or record the dataset again"
            )
        order = np.repeat([e.index for e in self.episodes], [e.length for e in self.episodes])
        if not np.array_equal(table["episode_index"].to_numpy(), order):
            raise DataError(
                f"{self.root}/data has its episodes in another order than {self.root}/meta: fetch it again"
            )
        return table

    def _vectors(self, key: str) -> NDArray[np.float32]:
        if key not in self._table.column_names:
            raise DataError(f"{self.root} has no {key!r}; it has {', '.join(self._table.column_names)}")
        column = self._table[key].combine_chunks()
        if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
            flat = column.flatten().to_numpy(zero_copy_only=False)
        else:
            flat = column.to_numpy(zero_copy_only=False)
        values = flat.astype(np.float32).reshape(len(self._table), -1)  # (rows, width)
        broken = ~np.isfinite(values).all(axis=1)
        if broken.any():
            row = int(broken.argmax())
            episode = next(e for e in self.episodes if e.start <= row < e.start + e.length)
            raise DataError(
                f"{key} of episode {episode.index}, frame {row - episode.start} in {self.root} is "
                f"{values[row]}: {int(broken.sum())} rows are not finite. Record those episodes again"
            )
        return values
