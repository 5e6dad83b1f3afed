"""Writing so that nothing is lost: temporary name, sync, rename.

A killed process leaves the old file or the new one.
"""

import ctypes
import errno
import fcntl
import json
import os
import reprlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tailorbird.errors import ConfigError, DataError, StorageError

REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EFBIG: "the file is larger than this file system or process may write: raise the limit",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EACCES: "permission denied: choose another folder",
}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the system's refusals to write into a StorageError that names the file and the remedy."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError) or error.errno not in REMEDIES:
            raise
        free = shutil.disk_usage(next(p for p in [path, *path.parents] if os.access(p, os.F_OK))).free / 1e6
        remedy = REMEDIES[error.errno]
        raise StorageError(
            f"cannot write {path} ({free:.0f} MB free): {remedy}, then run the same command again"
        ) from error


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name to write to; it becomes `path` when the block ends without an error."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _exchange(new: Path, path: Path) -> bool:
    """Swap two folders in one step. False where the system cannot: Linux has a call for it."""
    libc = ctypes.CDLL(None)
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    names = os.fsencode(new), os.fsencode(path)
    return hasattr(libc, "renameat2") and libc.renameat2(here, names[0], here, names[1], swap) == 0


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder; it replaces `path` if the block ends well."""
    temporary, old = (path.with_name(f".{path.name}.{kind}") for kind in ("new", "old"))
    with explained(path):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            for file in sorted(temporary.rglob("*"), reverse=True):
                _sync(file)
            _sync(temporary)
            if not (path.exists() and _exchange(temporary, path)):
                if path.exists():
                    shutil.rmtree(old, ignore_errors=True)
                    path.rename(old)
                temporary.rename(path)
            _sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)
            elif old.exists():
                old.rename(path)


def drop_folder(path: Path) -> None:
    """Delete a folder. Whoever is killed meanwhile leaves none of its name; the next call clears the rest."""
    gone = path.with_name(f".{path.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    for rest in path.parent.glob(".*.gone"):
        shutil.rmtree(rest)


def write_json(path: Path, value: Any) -> None:
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises DataError, naming the file, when it is missing or is not JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (ValueError, RecursionError) as error:  # no JSON, no text, a number or a nesting without end
        raise DataError(f"{path} is damaged: {error}. Restore it, or make it again") from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder while the block runs; a killed process lets go of it.

    Raises:
        StorageError: another process is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        hold(file, f"another process is at work in {folder}: wait for it, or choose another folder")
        yield


def hold(file: IO[Any], otherwise: str) -> None:
    """Keep other processes from holding the same open file; it is free once closed, or once we are killed.

    Raises:
        StorageError: one holds it already; `otherwise` says so.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StorageError(otherwise) from None


def claim(path: Path, settings: Any) -> None:
    """Keep the settings that a folder was begun with in a JSON file, and refuse to go on with others.

    Raises:
        ConfigError: the file holds other settings.
    """
    now = json.loads(json.dumps(settings))
    if path.exists() and (found := changes(read_json(path), now)):
        told = [
            f"{place} {reprlib.repr(then)}, now {reprlib.repr(this)}" for place, (then, this) in found.items()
        ]
        raise ConfigError(
            f"{path.parent} was begun with other settings ({path}: {'; '.join(told[:3])}): use the same, "
            "choose another folder, or delete it"
        )
    write_json(path, now)


def changes(then: Any, now: Any, where: str = "") -> dict[str, tuple[Any, Any]]:
    """What differs between two JSON values, by place: (then, now)."""
    if not (isinstance(then, dict) and isinstance(now, dict)):
        return {} if then == now else {where: (then, now)}
    names = sorted(then.keys() | now.keys())
    parts = [changes(then.get(name), now.get(name), f"{where}.{name}".strip(".")) for name in names]
    return {place: pair for part in parts for place, pair in part.items()}
