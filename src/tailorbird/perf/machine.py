"""What this machine has, and what to install. Each check tries the real thing."""

import importlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import numpy as np
import torch
from rich.table import Table
from rich.text import Text

from tailorbird.data.video import decode, encode
from tailorbird.errors import TailorbirdError
from tailorbird.provenance import cores, hardware, versions

NEEDED_GB = 2.0  # of disk: what `tailorbird demo` writes, with room to spare
EXTRAS = {"sim": ("metaworld", "mujoco"), "report": ("jinja2", "matplotlib"), "log": ("tensorboard",)}
State = Literal["ok", "absent", "missing"]


@dataclass(frozen=True)
class Finding:
    """missing: something that the demo needs. absent: something that one can do without."""

    what: str
    state: State
    detail: str
    remedy: str = ""


def examine(out: Path) -> list[Finding]:
    """Look at everything that a run relies on. `out` need not exist."""
    checks: tuple[Callable[[], Finding], ...] = (_processor, _gpu, _video, _opengl, lambda: _disk(out))
    return [check() for check in checks] + [_extra(name) for name in EXTRAS] + [_versions()]


def table(findings: list[Finding]) -> Table:
    """The findings for the terminal."""
    rows = Table("", "", "found", "what to do")
    marks = {"ok": Text("ok", "green"), "absent": Text("-", "yellow"), "missing": Text("missing", "red")}
    for finding in findings:
        rows.add_row(finding.what, marks[finding.state], finding.detail, finding.remedy)
    return rows


def _processor() -> Finding:
    return Finding(
        "processor", "ok", f"{hardware()}; torch uses {torch.get_num_threads()} of {cores()} cores"
    )


def _gpu() -> Finding:
    if torch.cuda.is_available():
        free, total = (value / 2**30 for value in torch.cuda.mem_get_info())
        return Finding(
            "GPU",
            "ok",
            f"{torch.cuda.get_device_name()}, {free:.0f} of {total:.0f} GiB free; chat and describe use it, "
            "training and policies do not yet",
        )
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPU"
    return Finding("GPU", "absent", f"none; torch {torch.__version__} is {built}", "the demo needs none")


def _video(size: int = 64) -> Finding:
    """Encode and decode a short film, as recording and training do."""
    ramp = np.linspace(0, 255, size, dtype=np.uint8)
    film = [np.broadcast_to(np.roll(ramp, i)[None, :, None], (size, size, 3)) for i in range(5)]
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "film.mp4"
            path.write_bytes(encode(map(np.ascontiguousarray, film), 5))
            back = list(decode(path, [i / 5 for i in range(5)]))
    except (TailorbirdError, OSError, ValueError) as error:
        return Finding("video", "missing", f"H.264: {error}", "pip install --force-reinstall av")
    worst = max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(film, back, strict=True))
    return Finding("video", "ok", f"H.264 writes and reads back within {worst} of 255 grey levels{_av1()}")


def _av1() -> str:
    """Datasets on the hub are mostly AV1."""
    try:
        av.Codec("av1", "r")
    except av.codec.codec.UnknownCodecError:
        return "; AV1 cannot be read"
    return "; AV1 can be read"


def _opengl() -> Finding:
    """Take one picture of the simulator."""
    try:
        from tailorbird.sim.camera import choose_gl
        from tailorbird.sim.metaworld import MetaWorld

        env = MetaWorld("push-v3")
        env.restart(0)
        shades = len(np.unique(env.photograph(64)))
        env.close()
    except Exception as error:  # OpenGL's loaders raise whatever they like
        what, _, remedy = str(error).partition(". ")
        return Finding("simulator", "missing", what, remedy)
    return Finding("simulator", "ok", f"a picture through {choose_gl() or 'a window'}, {shades} shades")


def _disk(out: Path) -> Finding:
    there = next(path for path in [out.absolute(), *out.absolute().parents] if path.exists())
    free = shutil.disk_usage(there).free / 1e9
    if free < NEEDED_GB:
        return Finding(
            "disk", "missing", f"{free:.1f} GB free at {there}", f"free {NEEDED_GB:.0f} GB, or use --out"
        )
    return Finding("disk", "ok", f"{free:.1f} GB free at {there}")


def _extra(name: str) -> Finding:
    lacking = []
    for module in EXTRAS[name]:
        try:
            importlib.import_module(module)
        except ImportError:
            lacking.append(module)
    if lacking:
        state: State = "absent" if name == "log" else "missing"
        return Finding(
            f"extra [{name}]", state, f"no {', '.join(lacking)}", f"pip install '.[{name}]' in the checkout"
        )
    return Finding(f"extra [{name}]", "ok", ", ".join(EXTRAS[name]))


def _versions() -> Finding:
    return Finding("versions", "ok", ", ".join(f"{name} {version}" for name, version in versions().items()))
