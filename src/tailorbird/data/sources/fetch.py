"""Published sets from the hub: what would be fetched, then the files, then whether they are what it has."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from tailorbird.data.sources.known import Known
from tailorbird.errors import DataError, StorageError
from tailorbird.progress import track

PIECE = 1 << 22  # bytes
ALWAYS = "README.md"  # the card, with the licence


@dataclass(frozen=True)
class Remote:
    """A file as the hub states it. sha256: of large files; blob: what git calls a small one."""

    path: str
    size: int
    sha256: str | None
    blob: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a download would fetch. commit: the hub's, so that it stays the same while it lasts."""

    known: Known
    commit: str
    licence: str
    gated: bool
    patterns: tuple[str, ...]
    files: tuple[Remote, ...]

    @property
    def gb(self) -> float:
        return sum(file.size for file in self.files) / 1e9

    def missing_bytes(self, folder: Path) -> int:
        sizes = {file: _size(folder / file.path) for file in self.files}
        return sum(file.size for file, size in sizes.items() if size != file.size)

    def __str__(self) -> str:
        gate = f", after you accept its terms at {page(self.known)}" if self.gated else ""
        return (
            f"{self.known.name}: {self.gb:.3g} GB in {len(self.files)} files of {self.known.hub} at "
            f"{self.commit[:8]}, licence {self.licence}{gate}"
        )


def page(known: Known) -> str:
    return f"https://huggingface.co/datasets/{known.hub}"


def plan(known: Known, configs: Sequence[str] = ()) -> Plan:
    """Ask the hub for the sizes.

    Raises:
        DataError: the set has no such configuration, or the hub does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    patterns = known.patterns(tuple(configs))
    try:
        info = HfApi().dataset_info(known.hub, revision="main")
        tree = HfApi().list_repo_tree(known.hub, recursive=True, revision=info.sha, repo_type="dataset")
        found = [entry for entry in tree if isinstance(entry, RepoFile)]
    except Exception as error:  # the library, and what it stands on, raise whatever they like
        raise DataError(_refusal(known, error)) from error
    wanted = [file for file in found if any(fnmatchcase(file.path, pattern) for pattern in patterns)]
    if outside := [file.path for file in wanted if _leads_out(file.path)]:
        raise DataError(
            f"{known.hub} names a file {outside[0][:200]!a}, which leads out of its folder: do not trust it"
        )
    if not wanted:
        folders = sorted({file.path.partition("/")[0] for file in found})
        raise DataError(
            f"{known.hub} has no files {' or '.join(patterns)}: it has {', '.join(folders)[:500]}"
        )
    return Plan(
        known=known,
        commit=str(info.sha),
        licence=str(getattr(info.card_data, "license", None) or known.licence),
        gated=bool(info.gated),
        patterns=(*patterns, ALWAYS),
        files=tuple(
            Remote(file.path, file.size, file.lfs.sha256 if file.lfs else None, file.blob_id)
            for file in wanted
        ),
    )


def download(what: Plan, folder: Path, max_gb: float) -> None:
    """Fetch what is not there yet, and compare all with what the hub states.

    Files that came whole are not fetched again.

    Raises:
        DataError: it is more than is allowed, the hub does not give it, or a file is not what it should be.
        StorageError: the disk is too small.
    """
    if what.gb > max_gb:
        raise DataError(
            f"{what.known.name} has {what.gb:.3g} GB, and {max_gb:g} are allowed: raise --max-gb"
            + ("" if what.known.part is None else ", or name a --config")
        )
    folder.mkdir(parents=True, exist_ok=True)
    free, missing = shutil.disk_usage(folder).free, what.missing_bytes(folder)
    if missing > free:
        raise StorageError(
            f"{what.known.name} needs {missing / 1e9:.3g} GB more, and {folder} has {free / 1e9:.3g} GB free"
        )
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(
            what.known.hub,
            repo_type="dataset",
            revision=what.commit,
            local_dir=folder,
            allow_patterns=list(what.patterns),
        )
    except Exception as error:  # as above
        raise DataError(_refusal(what.known, error)) from error
    verify(what, folder)


def verify(what: Plan, folder: Path) -> None:
    """Raises DataError naming the files that differ from what the hub states; they are removed."""
    wrong = []
    with track(f"checksums of {what.known.name}", total=len(what.files)) as bar:
        for file in what.files:
            path = folder / file.path
            if _size(path) != file.size or not _is_same(path, file):
                path.unlink(missing_ok=True)  # else it would count as fetched
                wrong.append(file.path)
            bar.advance(note=file.path)
    if wrong:
        raise DataError(
            f"{len(wrong)} files of {what.known.name} are not what the hub states, first {wrong[0]}: they "
            "were removed. Run the same command again"
        )


def _is_same(path: Path, file: Remote) -> bool:
    digest: Any = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {file.size}\0".encode())
    with path.open("rb") as opened:
        while piece := opened.read(PIECE):
            digest.update(piece)
    return digest.hexdigest() == (file.sha256 or file.blob)


def _leads_out(path: str) -> bool:
    return path.startswith("/") or ".." in PurePosixPath(path).parts


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _refusal(known: Known, error: Exception) -> str:
    from huggingface_hub.errors import GatedRepoError

    if isinstance(error, GatedRepoError):
        return (
            f"{known.hub} is given to those who accept its terms: accept them at {page(known)}, run "
            "`hf auth login`, then the same command again"
        )
    reason = (str(error).strip().splitlines() or ["no reason given"])[0]
    return (
        f"the hub did not give {known.hub} ({type(error).__name__}: {reason}): check the network, then run "
        "the same command again, which goes on with what is there"
    )
