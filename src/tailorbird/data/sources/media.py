"""Pictures and videos that rows speak of by name: files of a folder, or members of its archives."""

import os
import posixpath
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailorbird.data.sample import BadSample
from tailorbird.data.sources.archives import SUFFIXES, Member, UnreadableArchive, members, read_member
from tailorbird.data.sources.kept import kept
from tailorbird.errors import DataError
from tailorbird.processing.chat import REMOTE, ImageItem, VideoItem

IMAGES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"))
UNSPEAKABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # halves of characters, and what moves a cursor
SAID = 200  # letters of a name in a message
VIDEOS = frozenset((".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts"))
TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE member (name TEXT, base TEXT, archive INT, at INT, packed INT, size INT, method INT, crc INT);
CREATE TABLE unread (archive TEXT, reason TEXT);
CREATE INDEX by_base ON member (base);
"""
WHERE = "SELECT name, archive, at, packed, size, method, crc FROM member WHERE base = ?"

Shown = ImageItem | VideoItem


@dataclass(frozen=True)
class Media:
    """Finds what a name in a row means.

    A name is looked for in the root and in the folders named by `inside`, first among the files, then in
    the archives, whose members count as files beside them. If an archive holds no such path, one that ends
    with it will do, if it is the only one.

    archives: all below the root. index: where their members lie, None without archives.
    """

    root: Path
    inside: tuple[str, ...]
    archives: tuple[Path, ...]
    index: Path | None

    @staticmethod
    def below(root: Path, inside: Sequence[str] = (), *, deep: bool = True) -> "Media":
        """Looks through all archives of the root, unless that was done before.

        deep: and through those in its folders.
        """
        archives = tuple(sorted(_archives(root, deep)))
        index = kept("members", archives, lambda out: _write(root, archives, out)) if archives else None
        return Media(root, ("", *inside), archives, index)

    def show(self, name: object, near: Sequence[str] = (), kind: str = "") -> Shown:
        """A picture or video by its name; its suffix says which it is, else `kind`.

        near: further folders, relative to the root.
        """
        if not isinstance(name, str) or not name.strip() or UNSPEAKABLE.search(name):
            raise BadSample("damaged row", f"a row of {self.root} names {str(name)[:80]!a} as a medium")
        suffix = posixpath.splitext(name)[1].lower()
        is_video = suffix in VIDEOS or (suffix not in IMAGES and kind == "video")
        found = self.find(name, near)
        return VideoItem(found) if is_video else ImageItem(found)

    def find(self, name: str, near: Sequence[str] = ()) -> Path | bytes:
        """The path of a file, or the bytes of a member.

        Raises:
            BadSample: there is none, or it would lie outside the root, or it cannot be read.
        """
        if REMOTE.match(name):
            raise BadSample("missing file", f"{name[:SAID]} is not here: download it first and give its path")
        plain = posixpath.normpath(name)
        if plain.startswith("/") and Path(plain).is_relative_to(self.root.resolve()):
            plain = str(Path(plain).relative_to(self.root.resolve()))
        joined = [posixpath.normpath(posixpath.join(folder, plain)) for folder in (*near, *self.inside)]
        places = [place for place in joined if not place.startswith(("/", ".."))]
        if not places:
            raise BadSample(
                "outside the folder",
                f"{name[:SAID]} does not lie in {self.root}, where alone we look: --media names another "
                "folder for your own rows",
            )
        for place in places:
            if _is_file(self.root / place):
                return self.root / place
        return self._member(plain, places)

    def _member(self, name: str, places: Sequence[str]) -> bytes:
        unread: list[tuple[str, str]] = []
        if self.index is not None:
            found, unread = _look_up(self.index, posixpath.basename(name))
            exact = [row for place in places for row in found if row[0] == place]
            ending = [row for row in found if row[0].endswith(f"/{name}")]
            if exact or len(ending) == 1:
                return self._read((exact or ending)[0])
            if ending:
                several = ", ".join(row[0] for row in ending[:3])
                raise BadSample("missing file", f"{name} is in several archives of {self.root}: {several}")
        reasons = "".join(f"; {archive} could not be read: {reason}" for archive, reason in unread[:2])
        raise BadSample(
            "missing file",
            f"there is no {name[:SAID]} in {self.root}, as a file or in its {len(self.archives)} archives"
            f"{reasons}",
        )

    def _read(self, row: Any) -> bytes:
        name, archive, *place = row
        return read_member(self.archives[archive], Member(name, *place))


def _look_up(index: Path, base: str) -> tuple[list[Any], list[tuple[str, str]]]:
    """Members of this last part of a name, and the archives that could not be read."""
    try:
        with closing(sqlite3.connect(f"{index.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as opened:
            found = opened.execute(WHERE, [base]).fetchall()
            return found, opened.execute("SELECT archive, reason FROM unread").fetchall()
    except sqlite3.Error as error:
        raise DataError(f"{index} cannot be read ({error}): delete it, it is made again") from None


def stored(value: object, where: str) -> ImageItem:
    """A picture that lies in the row, as {"bytes": ..., "path": ...} or bytes."""
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes) or not data:
        raise BadSample("missing file", f"{where} has a picture without bytes")
    return ImageItem(data)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for a file
        return False


def _archives(root: Path, deep: bool) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if deep and not name.startswith(".")]
        yield from (Path(folder, name) for name in names if name.lower().endswith(SUFFIXES))


def _write(root: Path, archives: Sequence[Path], out: Path) -> None:
    with closing(sqlite3.connect(out)) as base:
        base.executescript(TABLES)
        for i, archive in enumerate(archives):
            beside = archive.parent.relative_to(root).as_posix()
            rows = (_row(member, i, beside) for member in _readable(archive, base))
            base.executemany("INSERT INTO member VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        base.commit()


def _readable(archive: Path, base: sqlite3.Connection) -> Iterator[Member]:
    try:
        yield from members(archive)
    except UnreadableArchive as error:
        base.execute("INSERT INTO unread VALUES (?, ?)", [archive.name, str(error)])


def _row(member: Member, archive: int, beside: str) -> tuple[Any, ...]:
    whole = posixpath.normpath(posixpath.join(beside, member.name))
    name = whole.encode(errors="surrogateescape").decode(errors="replace")
    place = (member.offset, member.packed, member.size, member.method, member.crc)
    return (name, posixpath.basename(name), archive, *place)
