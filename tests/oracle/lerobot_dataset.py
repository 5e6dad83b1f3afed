"""Compare our reader and writer with `lerobot-dataset`, an independent implementation of the format.

    PYTHONPATH=src python tests/oracle/lerobot_dataset.py DATASET

First it reads DATASET, which `tailorbird record` made, and a made-up one spread over several files, and
compares every row with what our reader says. Then it writes datasets of its own (AV1, H.264, PNG in parquet),
which our reader opens. Prints a line per comparison; exits with 1 if anything differs.

It needs an environment of its own: requirements.txt beside it. The package decodes video through
torchvision's "pyav" reader, and torchvision has no build for CPU-only torch on every machine, so three of its
names are put in place here before the package is imported: `set_video_backend`, `io.VideoReader` (PyAV: seek
to the keyframe before, then decode; what torchvision does) and `transforms.ToTensor`. All else is the
package's own.
"""

import logging
import os
import sys
import tempfile
import types
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

SCRATCH = tempfile.TemporaryDirectory()
os.environ |= {"HF_HOME": SCRATCH.name, "HF_HUB_OFFLINE": "1", "SVT_LOG": "1"}
logging.disable(logging.WARNING)
sys.path.insert(0, str(Path(__file__).parents[1]))

import av  # noqa: E402
import datasets  # noqa: E402, F401 (before the stand-in: it asks whether torchvision is there)
import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

av.logging.set_libav_level(av.logging.ERROR)


class VideoReader:
    """What torchvision's "pyav" backend is, in short."""

    def __init__(self, path: str, stream: str) -> None:
        assert stream == "video"
        self.container = av.open(path)
        self._stream = self.container.streams.video[0]

    def seek(self, time_s: float, keyframes_only: bool) -> None:
        base = self._stream.time_base or Fraction(1)
        self.container.seek(round(time_s / base), stream=self._stream, any_frame=not keyframes_only)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for frame in self.container.decode(self._stream):
            pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
            yield {"data": pixels, "pts": frame.time}


class ToTensor:
    def __call__(self, picture: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


torchvision: Any = types.ModuleType("torchvision")
torchvision.set_video_backend = lambda name: None
torchvision.io = types.SimpleNamespace(VideoReader=VideoReader)
torchvision.transforms = types.SimpleNamespace(ToTensor=ToTensor)
sys.modules["torchvision"] = torchvision

from ledataset.datasets.lerobot_dataset import LeRobotDataset as Theirs  # noqa: E402

from synthetic import make_demo, pictures, write_dataset  # noqa: E402
from tailorbird.data.lerobot import ACTION, CAMERA, STATE  # noqa: E402
from tailorbird.data.lerobot import LeRobotDataset as Ours  # noqa: E402
from tailorbird.data.stats import describe, describe_frames, merge  # noqa: E402

CHUNK = 6
different: list[str] = []


def compare(what: str, ours: Any, theirs: Any, within: float = 0.0) -> None:
    """One line: what was compared, its shape, and the largest difference if there is one."""
    a, b = np.asarray(ours), np.asarray(theirs)
    if a.shape != b.shape:
        distance = float("inf")
    elif a.dtype.kind in "US":
        distance = float((a != b).any())
    else:
        distance = float(np.abs(a.astype(float) - b.astype(float)).max(initial=0))
    verdict = "equal" if distance == 0 else "close" if distance <= within else "DIFFERENT"
    if verdict == "DIFFERENT":
        different.append(what)
    apart = f", {distance:.2g} apart (allowed {within:g})" if distance else ""
    print(f"  {what:44} {a.shape!s:>20}  {verdict}{apart}")


def as_picture(tensor: torch.Tensor) -> np.ndarray:
    return (tensor * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def flat(stats: dict[str, Any], like: dict[str, Any]) -> np.ndarray:
    return np.concatenate([np.ravel(stats[key][name]) for key in like for name in like[key]])


def compare_datasets(root: Path) -> None:
    """Every row of one folder, through both readers."""
    ours = Ours(root)
    steps = {ACTION: [i / ours.fps for i in range(CHUNK)]}
    theirs = Theirs("someone/something", root=root, video_backend="pyav", delta_timestamps=steps)
    rows = [theirs[i] for i in range(len(theirs))]
    actions, valid = ours.chunk(np.arange(len(ours)), CHUNK)
    compare("rows, episodes", (len(ours), len(ours.episodes)), (len(theirs), theirs.num_episodes))
    compare("rate", ours.fps, theirs.fps)
    compare("cameras", sorted(CAMERA + name for name in ours.cameras), sorted(theirs.meta.camera_keys))
    compare(STATE, ours.state, [row[STATE].numpy() for row in rows])
    compare("chunks of actions", actions, [row[ACTION].numpy() for row in rows])
    compare("padding of chunks", ~valid, [row[f"{ACTION}_is_pad"].numpy() for row in rows])
    compare("timestamp", ours.timestamp, [row["timestamp"].item() for row in rows])
    compare("episode_index", ours.episode_index, [row["episode_index"].item() for row in rows])
    compare("task_index", ours.task_index, [row["task_index"].item() for row in rows])
    compare("task", [ours.tasks[i] for i in ours.task_index], [row["task"] for row in rows])
    for camera in ours.cameras:
        whole = [frame for episode in ours.episodes for frame in ours.frames(episode, camera)]
        compare(f"frames of {camera}", np.stack(whole), [as_picture(row[CAMERA + camera]) for row in rows])
    both = ours.stats, theirs.meta.stats
    names = [sorted(f"{name} of {key}" for key in stats for name in stats[key]) for stats in both]
    compare("statistics: which", *names)
    compare("statistics: every number", *(flat(stats, ours.stats) for stats in both))


def write_theirs(root: Path, codec: str) -> list[np.ndarray]:
    """A small dataset by their writer, from our made-up episodes enlarged. Returns the frames given to it."""
    as_video = codec != "png"
    cameras = {"front": (96, 144), "wrist": (72, 120)}  # AV1 wants at least 64 px
    features: dict[str, Any] = {
        STATE: {"dtype": "float32", "shape": (3,), "names": ["x", "y", "z"]},
        ACTION: {"dtype": "float32", "shape": (2,), "names": ["dx", "dy"]},
    }
    for name, size in cameras.items():
        kind = "video" if as_video else "image"
        names = ["height", "width", "channels"]
        features[CAMERA + name] = {"dtype": kind, "shape": (*size, 3), "names": names}
    codecs = {"vcodec": codec} if as_video else {}
    theirs = Theirs.create("someone/made-up", 10, features, root=root, use_videos=as_video, **codecs)
    given = []
    for seed in range(4):
        demo = make_demo(seed)
        views = {name: pictures(len(demo.state), *size, seed) for name, size in cameras.items()}
        given.append(views["front"])
        for step in range(len(demo.state)):
            frame = {STATE: demo.state[step], ACTION: demo.action[step], "task": demo.task}
            theirs.add_frame(frame | {CAMERA + name: view[step] for name, view in views.items()})
        theirs.save_episode()
    theirs.finalize()
    return given


def check_written(codec: str) -> None:
    """Our reader against what their writer was given, and against their reader."""
    root = Path(SCRATCH.name) / codec
    given = write_theirs(root, codec)
    compare_datasets(root)
    ours, demos = Ours(root), [make_demo(seed) for seed in range(4)]
    compare("actions as given", ours.action, np.concatenate([demo.action for demo in demos]))
    compare("tasks as given", [ours.tasks[i] for i in ours.task_index[ours._ends]], [d.task for d in demos])
    found = [np.stack(list(ours.frames(episode, "front"))) for episode in ours.episodes]
    error = np.abs(np.concatenate(found).astype(float) - np.concatenate(given)).mean()
    compare("frames as given, mean difference", error, 0.0, within=0.0 if codec == "png" else 6.0)
    mine = {STATE: describe(ours.state), ACTION: describe(ours.action)}
    mine[CAMERA + "front"] = merge([describe_frames(frames) for frames in given])
    # Not the quantiles: theirs are read off histograms of 5000 bins, ours are exact. Nor the deviation of
    # pictures: 0.4.4 squares them as uint8, which overflows.
    for key in mine:
        kinds = ("min", "max", "mean", "count") + ("std",) * (CAMERA not in key)
        like = {key: dict.fromkeys(kinds)}
        values = [flat(stats, like) for stats in (mine, ours.stats)]
        compare(f"{key}, described by us", *values, within=1e-7)


def main() -> int:
    recorded = Path(sys.argv[1])
    print(f"{recorded}, recorded by us")
    compare_datasets(recorded)
    spread = Path(SCRATCH.name) / "spread"
    write_dataset(spread, range(6), data_mb=0.0025, video_mb=0.006)
    num_tables, num_videos = (len(list((spread / kind).rglob("file-*"))) for kind in ("data", "videos"))
    print(f"\nmade up, written by us: {num_tables} parquet and {num_videos} mp4 files")
    compare("several files of each kind", (num_tables > 1, num_videos > 2), (True, True))
    compare_datasets(spread)
    for codec in ("libsvtav1", "h264", "png"):
        print(f"\nmade up, written by lerobot-dataset: {codec}")
        check_written(codec)
    print(f"\n{len(different)} comparisons differ" + "".join(f"\n  {what}" for what in different))
    return bool(different)


if __name__ == "__main__":
    sys.exit(main())
