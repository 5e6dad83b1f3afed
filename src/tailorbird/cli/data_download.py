"""tailorbird data download"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class Download:
    """Fetch published sets, each to a folder of its name. Sizes and licences are said before.

    Examples: tailorbird data download cauldron --config ai2d docvqa --out data

    tailorbird data download docmatix --out data --max-gb 600

    Interrupted, the same command goes on. All files are compared with the checksums that the hub states.
    """

    names: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="NAME")]
    """Sets of `data list`."""
    out: Path
    """Folder of the folders."""
    config: tuple[str, ...] = ()
    """Configurations of a set; all of them if none is named."""
    max_gb: float = 100.0
    """Refuse a set with more."""

    def __call__(self) -> None:
        from tailorbird.data.sources.fetch import download, plan
        from tailorbird.data.sources.known import find_known
        from tailorbird.progress import console

        plans = [plan(find_known(name), self.config) for name in self.names]
        for one in plans:
            console.print(str(one))
        for one in plans:
            download(one, self.out / one.known.name, self.max_gb)
            console.print(f"{one.known.name}: whole, in {self.out / one.known.name}")
