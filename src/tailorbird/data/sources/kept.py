"""Indices of large files: made once, kept in the user's cache, made anew when a file changes."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tailorbird.storage import new_file

LAYOUT = "1"  # of what is kept; another number makes all anew
EDGE = 1 << 12  # bytes at both ends of a file that its fingerprint is made of


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/tailorbird, or ~/.cache/tailorbird."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tailorbird"


def kept(kind: str, files: Sequence[Path], build: Callable[[Path], None]) -> Path:
    """The index of these files; `build` writes one to a temporary name if there is none.

    It counts as theirs while none of them changes its path, size or time of change. Several processes may
    build the same at once: the last one wins, and all of them made the same.
    """
    digest = hashlib.sha256(f"{LAYOUT} {kind}".encode())
    for file in files:
        state = file.stat()
        digest.update(
            f"\n{file.resolve()} {state.st_size} {state.st_mtime_ns}".encode(errors="surrogateescape")
        )
    path = cache_folder() / f"{digest.hexdigest()[:32]}.{kind}"
    if not path.exists():
        with new_file(path) as temporary:
            build(temporary)
    return path


def fingerprint(files: Iterable[tuple[str, Path]]) -> str:
    """Of names and files: their sizes, and what stands at both ends. A copy elsewhere has the same."""
    digest = hashlib.sha256()
    for name, path in files:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(f"{name} {size}\n".encode(errors="surrogateescape"))
            digest.update(file.read(EDGE))
            file.seek(max(EDGE, size - EDGE))
            digest.update(file.read(EDGE))
    return digest.hexdigest()[:16]
