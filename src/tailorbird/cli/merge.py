"""tailorbird merge"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Put low-rank updates that `finetune` or `peft` saved into the weights of the model they were made from.

    Example: tailorbird merge HuggingFaceTB/SmolVLM2-256M-Video-Instruct runs/mine/model/adapter --out merged
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Folder of a model, or its id on the hub."""
    adapter: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="ADAPTER")]
    """Folder with adapter_config.json."""
    out: Path
    """Folder to write, in the hub's layout."""

    def __call__(self) -> None:
        from tailorbird.progress import console
        from tailorbird.recipes.vlm_merge import merge_adapter

        changed = merge_adapter(self.model, self.adapter, self.out)
        console.print(f"{self.out}: {changed} layers changed")
