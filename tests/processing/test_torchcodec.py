"""torchcodec in the place of PyAV: the same frames, by a process that finds the FFmpeg which PyAV brings.

torchcodec looks for FFmpeg's libraries by their plain names, where a process looks from its start.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from tailorbird.data.video import encode
from tailorbird.errors import ConfigError
from tailorbird.processing.video_file import VideoFile

needs_torchcodec = pytest.mark.skipif(
    importlib.util.find_spec("torchcodec") is None, reason="pip install 'tailorbird[torchcodec]'"
)
WANTED = (0, 7, 8, 23, 39)
CHILD = """
import json, sys, torch
from pathlib import Path
from tailorbird.processing.video_file import VideoFile

found, wanted = {}, json.loads(sys.argv[1])
for name in sys.argv[2:]:
    for source in (Path(name), Path(name).read_bytes()):
        ours, other = VideoFile(source), VideoFile(source, "torchcodec")
        same = all(map(torch.equal, ours.pick(wanted), other.pick(wanted)))
        found.setdefault(Path(name).name, []).append([same, len(other._by_torchcodec(wanted))])
print(json.dumps(found))
"""


def write(path: Path, codec: str, **options: str) -> Path:
    """40 frames of moving colours."""
    soft = np.random.default_rng(1).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    large = soft.repeat(16, 0).repeat(16, 1)
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        for i in range(40):
            picture = np.ascontiguousarray(np.roll(large, 3 * i, 1))
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    return path


def turned(path: Path, out: Path) -> Path:
    """The same mp4, that asks players to turn it by a quarter."""
    one = (1 << 16).to_bytes(4)
    zero, last = bytes(4), (1 << 30).to_bytes(4)
    upright, quarter = one + 3 * zero + one, zero + one + zero + (-(1 << 16)).to_bytes(4, signed=True) + zero
    head, name, rest = path.read_bytes().partition(b"tkhd")
    assert upright in rest[:80]
    out.write_bytes(head + name + re.sub(re.escape(upright), quarter, rest, count=1))
    assert last in rest[:80]
    return out


@needs_torchcodec
def test_torchcodec_gives_the_frames_of_pyav_and_what_it_would_give_otherwise_pyav_gives(
    tmp_path: Path,
) -> None:
    x264 = {"g": "9", "bf": "2"}
    plain = write(tmp_path / "plain.mp4", "libx264", **x264)
    of_hd = "colorprim=bt709:transfer=bt709:colormatrix=bt709"
    files = [
        plain,
        write(tmp_path / "hd.mp4", "libx264", **x264, **{"x264-params": of_hd}),
        write(tmp_path / "vp9.webm", "libvpx-vp9"),
        turned(plain, tmp_path / "turned.mp4"),
    ]
    (libraries,) = Path(av.__file__).parents[1].glob("av.libs")
    (tmp_path / "lib").mkdir()
    for path in libraries.glob("lib*.so.*"):
        if named := re.fullmatch(r"(lib(?:av|sw)\w+)-\w+(\.so\.\d+)[\d.]*", path.name):
            (tmp_path / "lib" / "".join(named.groups())).symlink_to(path)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(WANTED), *map(str, files)],
        env={**os.environ, "LD_LIBRARY_PATH": f"{tmp_path / 'lib'}:{libraries}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    by_torchcodec = [[True, len(WANTED)]] * 2
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "plain.mp4": by_torchcodec,
        "hd.mp4": by_torchcodec,
        "vp9.webm": by_torchcodec,
        "turned.mp4": [[True, 0]] * 2,
    }


def test_a_torchcodec_that_does_not_load_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(
        ConfigError, match=r"torchcodec does not load .*tailorbird\[torchcodec\].*or choose pyav"
    ):
        VideoFile(encode(iter(np.zeros((3, 16, 24, 3), np.uint8)), 10), "torchcodec")
