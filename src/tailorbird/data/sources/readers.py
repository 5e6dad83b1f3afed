"""How a folder of a published set is read, and what the user's words name: a source of theirs, or a set."""

import glob
from collections.abc import Callable
from pathlib import Path

from tailorbird.data.sources.captioned_videos import moviechat, sharegpt4video
from tailorbird.data.sources.finevideo import finevideo
from tailorbird.data.sources.image_texts import image_texts
from tailorbird.data.sources.known import KNOWN, find_known
from tailorbird.data.sources.llava import llava
from tailorbird.data.sources.onevision import onevision
from tailorbird.data.sources.own import own
from tailorbird.data.sources.rows import RowSource
from tailorbird.data.sources.vript import vript
from tailorbird.errors import DataError

Read = Callable[[str, Path, str | None], RowSource]  # name, folder, configuration


def _folders(open_them: Callable[[str, Path, list[str]], RowSource], whole: str = "*") -> Read:
    """Sets with a folder of Parquet files for each configuration."""

    def read(name: str, root: Path, config: str | None) -> RowSource:
        return open_them(name, root, [glob.escape(config) if config else whole])

    return read


def _json(whole: tuple[str, ...], part: tuple[str, ...], inside: tuple[str, ...] = ()) -> Read:
    """Sets in LLaVA's layout. part: patterns of one configuration's rows, with a hole for its name."""

    def read(name: str, root: Path, config: str | None) -> RowSource:
        named = [pattern.format(glob.escape(config)) for pattern in part] if config else whole
        return llava(name, root, named, inside)

    return read


def _whole(open_it: Callable[[str, Path], RowSource]) -> Read:
    return lambda name, root, _: open_it(name, root)


READERS: dict[str, Read] = {  # of each known set
    "cauldron": _folders(image_texts),
    "docmatix": _folders(image_texts, "data"),
    "finevision": _folders(image_texts),
    "onevision": _folders(onevision),
    "mammoth-vl": _json(
        ("mammoth_*.json",),
        ("mammoth_{}*.json",),
        ("single_image_data", "multi_image_data", "video_data"),
    ),
    "m4-instruct": _json(("m4_instruct_*.json",), ("m4_instruct_{}.json",)),
    "llava-video": _json(
        ("*/*cap*.json", "*/*oe*.json", "*/*mc*.json"), ("{}/*cap*.json", "{}/*oe*.json", "{}/*mc*.json")
    ),
    "finevideo": _whole(finevideo),
    "video-star": _json(
        ("ft_json/*_tune_.json",), ("ft_json/{}*.json",), ("Kinetics700", "STAR-benchmark", "FineDiving")
    ),
    "vript": _whole(vript),
    "vista": _json(("*.json", "*/*.json"), ("{}.json", "{}/*.json")),
    "moviechat": _whole(moviechat),
    "sharegpt4video": _whole(sharegpt4video),
}


def open_source(what: str | Path, media: Path | None = None) -> RowSource:
    """The user's own file or folder, or a published set as NAME:FOLDER or NAME/CONFIGURATION:FOLDER.

    media: see `own`; the published sets know where theirs are.
    Raises:
        DataError: there is no such file, folder or set, or it is damaged.
    """
    path = Path(what)
    if path.exists():
        return own(path, media)
    name, colon, folder = str(what).partition(":")
    name, _, config = name.partition("/")
    if not colon or not Path(folder).is_dir():
        raise DataError(
            f"{what} does not exist: give a file or folder of your own, or NAME:FOLDER for a published set, "
            f"with NAME one of {', '.join(known.name for known in KNOWN)}"
        )
    read = READERS[find_known(name).name]
    return read(f"{name}/{config}" if config else name, Path(folder), config or None)
