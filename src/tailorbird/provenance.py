"""Where a number comes from: commit, machine, versions, date.

Saved with every checkpoint and every result.
"""

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

PACKAGES = ("tailorbird", "torch", "numpy", "av", "tokenizers", "pyarrow", "mujoco", "metaworld", "gymnasium")


@cache
def commit() -> str:
    """The git commit of this source tree, with `-dirty` when it has uncommitted changes; else `unknown`."""
    here = Path(__file__).parent

    def git(*args: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *args], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        top = Path(git("rev-parse", "--show-toplevel"))
        if not here.is_relative_to(top / "src"):
            return "unknown"  # installed inside somebody else's repository
        dirty = "-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "--short=12", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def hardware() -> str:
    """Processor, usable cores and memory in one line."""
    name, memory = platform.processor() or platform.machine(), 0.0
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (OSError, ValueError):
        pass
    return f"{name}, {cores()} cores, {memory:.0f} GiB"


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def command() -> str:
    """The command line of this process, as one would type it."""
    return shlex.join([Path(sys.argv[0]).name.replace("__main__.py", "tailorbird"), *sys.argv[1:]])


def stamp(command: str) -> dict[str, str]:
    """The four facts without which a result does not count."""
    return {
        "command": command,
        "commit": commit(),
        "hardware": hardware(),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
