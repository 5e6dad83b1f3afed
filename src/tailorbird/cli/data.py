"""tailorbird data"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tailorbird.cli.data_download import Download
from tailorbird.cli.data_preview import Preview


@dataclass(frozen=True, kw_only=True)
class List:
    """Say which published sets can be read, with their sizes, licences and origin.

    Example: tailorbird data list
    """

    def __call__(self) -> None:
        from tailorbird.recipes.data_list import show_known

        show_known()


@dataclass(frozen=True, kw_only=True)
class Check:
    """Read a source, count what would be dropped and why, and name the first offenders.

    Examples: tailorbird data check my.jsonl --open

    tailorbird data check llava-video:data/llava-video --rows 10000
    """

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """A file or folder of your own, or NAME:FOLDER or NAME/CONFIG:FOLDER of a set in `data list`."""
    rows: int | None = None
    """How many, spread over all; else every one."""
    open: bool = False
    """Decode the pictures, and read the videos."""
    media: Path | None = None
    """Folder in which your own rows name pictures and videos; else that of the rows."""

    def __call__(self) -> None:
        from tailorbird.data.sources.readers import open_source
        from tailorbird.recipes.data_check import check, show

        show(check(open_source(self.source, self.media), self.rows, opened=self.open))


@dataclass(frozen=True)
class Data:
    """Find, fetch, look at and check what a model can learn from.

    Example: tailorbird data list
    """

    what: Annotated[
        Annotated[List, tyro.conf.subcommand("list")]
        | Annotated[Preview, tyro.conf.subcommand("preview")]
        | Annotated[Download, tyro.conf.subcommand("download")]
        | Annotated[Check, tyro.conf.subcommand("check")],
        tyro.conf.arg(name=""),
    ]

    def __call__(self) -> None:
        self.what()
