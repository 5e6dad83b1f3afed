"""Pictures and videos by name: in folders, and in archives that are never unpacked."""

import pickle
import struct
import tarfile
import zipfile
from itertools import islice
from pathlib import Path

import pytest

from shown import picture, write_tar, write_zip
from tailorbird.data.sample import BadSample
from tailorbird.data.sources import archives
from tailorbird.data.sources.media import Media
from tailorbird.processing.chat import ImageItem, VideoItem


def reason(media: Media, name: str) -> str:
    with pytest.raises(BadSample) as refused:
        media.find(name)
    return f"{refused.value.reason}: {refused.value}"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_of_zips_and_tars_count_as_files_beside_them(tmp_path: Path, method: int) -> None:
    long = "x" * 120 + ".png"  # a tar needs another header for it
    write_zip(tmp_path / "b/pictures.zip", {"coco/1.png": b"one" * 99, "coco/empty.png": b""}, method)
    write_tar(tmp_path / "c/shard.tar", {"./2.png": b"two", long: b"long", "deep/3.png": b"three"})
    (tmp_path / "a.png").write_bytes(b"loose")
    media = pickle.loads(pickle.dumps(Media.below(tmp_path, ["c"])))  # noqa: S301 (our own)
    assert media.find("b/coco/1.png") == b"one" * 99
    assert media.find("b/coco/empty.png") == b""
    assert media.find("2.png") == b"two", "in a folder that names are relative to"
    assert media.find("./c//" + long) == b"long"
    assert media.find("a.png") == tmp_path / "a.png"
    assert media.find(str(tmp_path / "a.png")) == tmp_path / "a.png"
    assert media.find("coco/1.png") == b"one" * 99, "the only one that ends so"
    assert media.find("1.png", ["b/coco"]) == b"one" * 99


def test_what_a_name_shows_is_said_by_its_suffix_or_the_field(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.png", "c"):
        (tmp_path / name).write_bytes(b".")
    media = Media.below(tmp_path)
    assert isinstance(media.show("a.mp4", kind="image"), VideoItem)
    assert isinstance(media.show("b.png", kind="video"), ImageItem)
    assert isinstance(media.show("c", kind="video"), VideoItem)
    for name in (3, "", None, "a\0b", "a\ud800.png", "a\x1b[2J.png"):
        with pytest.raises(BadSample, match="as a medium"):
            media.show(name)


def test_a_name_that_is_nowhere_or_in_several_places_is_refused(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", {"x/1.png": b"1", "y/1.png": b"2"})
    media = Media.below(tmp_path)
    assert reason(media, "2.png").startswith("missing file: there is no 2.png in")
    assert reason(media, "x" * 5000).startswith("missing file")
    assert "1.png is in several archives" in reason(media, "1.png")
    assert media.find("y/1.png") == b"2"


@pytest.mark.parametrize("name", ["../secret.png", "a/../../secret.png", "/etc/passwd", "//etc/passwd"])
def test_a_name_never_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "set").mkdir()
    write_tar(tmp_path / "set/a.tar", {name: b"inside", "b/1.png": b"1"})
    media = Media.below(tmp_path / "set")
    assert reason(media, name).startswith("outside the folder")
    assert media.find("b/1.png") == b"1"
    assert reason(media, "secret.png").startswith("missing file"), "members of such names do not count"


def test_links_in_a_tar_are_no_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for kind, name in ((tarfile.SYMTYPE, "1.png"), (tarfile.LNKTYPE, "2.png")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    media = Media.below(tmp_path)
    assert reason(media, "1.png").startswith("missing file")
    assert reason(media, "2.png").startswith("missing file")


def test_archives_that_cannot_be_read_are_named_with_what_to_do(tmp_path: Path) -> None:
    files = {f"{i}.png": picture(i) * 9 for i in range(5)}
    write_tar(tmp_path / "a.tar.gz", files, "w:gz")
    whole = write_zip(tmp_path / "b.zip", files).read_bytes()
    (tmp_path / "b.zip").write_bytes(whole[:-30])
    media = Media.below(tmp_path)
    assert "a.tar.gz could not be read: it is compressed as a whole" in reason(media, "1.png")
    assert "gunzip it; b.zip could not be read: it is cut or damaged" in reason(media, "1.png")
    (tmp_path / "a.tar.gz").unlink()
    write_zip(tmp_path / "b.zip", files)
    (tmp_path / "b.z01").write_bytes(b"")
    assert "it is one of several parts: join them" in reason(Media.below(tmp_path), "1.png")


def test_a_cut_tar_gives_what_lies_before_the_cut(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {f"{i}.png": bytes([i]) * 700 for i in range(4)})
    path.write_bytes(path.read_bytes()[: 2 * 1536 + 600])
    media = Media.below(tmp_path)
    assert media.find("1.png") == b"\1" * 700
    assert "a.tar could not be read: it is cut or damaged" in reason(media, "2.png")


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_tar_whose_sizes_lead_back_comes_to_an_end(tmp_path: Path, kind: bytes) -> None:
    """Its member ends where it begins: Python's own reader goes round and round."""
    first = write_tar(tmp_path / "a.tar", {"1.png": b"1"}).read_bytes()[:1024]
    info = tarfile.TarInfo("2.png")
    info.type, info.size = kind, -512
    (tmp_path / "a.tar").write_bytes(first + info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(archives.UnreadableArchive, match="cut or damaged"):
        list(islice(archives.members(tmp_path / "a.tar"), 1000))
    media = Media.below(tmp_path)
    assert media.find("1.png") == b"1"
    assert "a.tar could not be read: it is cut or damaged" in reason(media, "2.png")


def test_damage_within_a_zip_is_found(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = write_zip(tmp_path / "a.zip", {"1.png": data, "2.png": data}, method)
        whole = bytearray(path.read_bytes())
        whole[60] ^= 255
        path.write_bytes(whole)
        media = Media.below(tmp_path)
        assert reason(media, "1.png").startswith("damaged archive")
        assert media.find("2.png") == data


def test_a_zip_whose_sizes_lie_is_decoded_no_further_than_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_zip(tmp_path / "a.zip", {"1.png": bytes(1 << 20)}, zipfile.ZIP_DEFLATED)
    whole = path.read_bytes()
    at = whole.index(b"PK\1\2") + 24  # the size once unpacked
    path.write_bytes(whole[:at] + struct.pack("<I", 1000) + whole[at + 4 :])
    assert reason(Media.below(tmp_path), "1.png").startswith("damaged archive")
    path.write_bytes(whole)
    monkeypatch.setattr(archives, "LARGEST_MEMBER", 1 << 19)
    assert reason(Media.below(tmp_path), "1.png").startswith("too large")


def test_a_member_packed_in_another_way_or_encrypted_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"1.png": b"1" * 99}, zipfile.ZIP_LZMA)
    assert reason(Media.below(tmp_path), "1.png").startswith("damaged archive")
    whole = bytearray(write_zip(path, {"1.png": b"1" * 99}).read_bytes())
    whole[whole.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(whole)
    assert reason(Media.below(tmp_path), "1.png").startswith("missing file")


def test_the_index_follows_the_archives(tmp_path: Path, cache: Path) -> None:
    write_tar(tmp_path / "a.tar", {"1.png": b"1"})
    assert Media.below(tmp_path).find("1.png") == b"1"
    assert Media.below(tmp_path).find("1.png") == b"1"
    assert len(list(cache.iterdir())) == 1
    write_tar(tmp_path / "b.tar", {"2.png": b"2"})
    assert Media.below(tmp_path).find("2.png") == b"2"
    assert len(list(cache.iterdir())) == 2
