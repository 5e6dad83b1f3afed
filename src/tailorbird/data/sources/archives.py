"""Zip and tar files, of which single members are read where they lie. Nothing is unpacked."""

import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tailorbird.data.sample import BadSample

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.zst")
LARGEST_MEMBER = 1 << 30  # bytes
PACKED_WHOLE = {b"\x1f\x8b": "gunzip", b"\x28\xb5": "unzstd"}  # first bytes, and what unpacks them
FARTHEST = 1 << 62
LOCAL_HEADER = 30  # bytes of a zip before a member's name
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


@dataclass(frozen=True)
class Member:
    """Where a file lies in an archive.

    offset: of its local header in a zip, of its bytes in a tar. crc: of its bytes; -1 in a tar, without one.
    """

    name: str
    offset: int
    packed: int  # bytes in the archive
    size: int  # bytes once unpacked
    method: int = STORED
    crc: int = -1


class UnreadableArchive(Exception):  # noqa: N818 (reads as what happened)
    """Why no member, or no further one, can be found."""


def members(path: Path) -> Iterator[Member]:
    """The files in an archive; links, and names that lead out of it, are not among them.

    Raises:
        UnreadableArchive: it is cut, damaged, split, or compressed as a whole.
    """
    with path.open("rb") as file:
        start = file.read(2)
    if start in PACKED_WHOLE:
        raise UnreadableArchive(
            f"it is compressed as a whole, so that nothing in it can be read alone: {PACKED_WHOLE[start]} it"
        )
    found = _of_zip(path) if path.suffix.lower() == ".zip" else _of_tar(path)
    for member in found:
        if max(member.offset, member.packed, member.size) > FARTHEST:
            raise UnreadableArchive("it is damaged: a member lies beyond any disk. Fetch it again")
        if not member.name.startswith("/") and ".." not in member.name.split("/"):
            yield member


def _of_zip(path: Path) -> Iterator[Member]:
    if path.with_suffix(".z01").exists():
        raise UnreadableArchive(
            f"it is one of several parts: join them, `zip -s 0 {path.name} --out one.zip`"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.is_dir() and not info.flag_bits & 1:  # encrypted
                    yield Member(
                        info.filename,
                        info.header_offset,
                        info.compress_size,
                        info.file_size,
                        info.compress_type,
                        info.CRC,
                    )
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UnreadableArchive(f"it is cut or damaged ({error}): fetch it again") from None


def _of_tar(path: Path) -> Iterator[Member]:
    size, at = path.stat().st_size, -1
    try:
        with tarfile.open(path, "r:") as archive:
            while (info := archive.next()) is not None:
                vars(archive)["members"].clear()  # else all of them are held
                if archive.offset <= at or info.size < 0:  # some releases of Python go round for ever
                    raise ValueError("a member ends before it begins")
                at = archive.offset
                if info.isreg() and not info.issparse() and info.offset_data + info.size <= size:
                    yield Member(info.name.removeprefix("./"), info.offset_data, info.size, info.size)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UnreadableArchive(f"it is cut or damaged ({error}): fetch it again") from None


def read_member(path: Path, member: Member) -> bytes:
    """Raises BadSample: it is too large, damaged, or packed in another way than deflated."""
    where = f"{member.name} in {path}"
    if max(member.size, member.packed) > LARGEST_MEMBER:
        raise BadSample("too large", f"{where} has {member.size:,} bytes: unpack it into its folder")
    if member.method not in (STORED, DEFLATED):
        raise BadSample("damaged archive", f"{where} is packed by method {member.method}: unpack the archive")
    try:
        with path.open("rb") as file:
            file.seek(member.offset)
            if member.crc >= 0:
                header = file.read(LOCAL_HEADER)
                file.seek(sum(int.from_bytes(header[i : i + 2], "little") for i in (26, 28)), 1)
            data = file.read(member.packed)
        if member.method == DEFLATED:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, member.size + 1)
    except (OSError, zlib.error) as error:
        raise BadSample("damaged archive", f"{where} cannot be read: {error}") from None
    if len(data) != member.size or (member.crc >= 0 and zlib.crc32(data) != member.crc):
        raise BadSample("damaged archive", f"{where} is cut or damaged: fetch the archive again")
    return data
