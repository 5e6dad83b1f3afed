"""Stored measurements as tables for the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from tailorbird.errors import DataError
from tailorbird.storage import read_json

WAYS = {
    "reference": "transformers, Pillow",
    "exact": "tailorbird, exact",
    "tensor": "tailorbird, tensor",
    "bypass": "no image tokens",
}
PARTS = {
    "split": "random weights, pictures split into tiles",
    "unsplit": "random weights, one tile a picture",
    "language": "SmolLM2's words, one tile a picture",
}


def tables(folder: Path, name: str) -> list[RenderableType]:
    """The tables of one result file, and where its figures are from.

    Raises:
        DataError: the file is not there, or damaged.
    """
    path = folder / f"{name.replace('-', '_')}.json"
    if not path.exists():
        raise DataError(f"{path} does not exist: run `make bench-{name}` in a checkout, or name --results")
    result = read_json(path)
    try:
        parts: list[RenderableType] = [_loss_gap(result[part], PARTS[part]) for part in PARTS]
        source = (result[key] for key in ("command", "commit", "hardware", "date"))
        return [*parts, "{}, commit {}, {}, {}".format(*source)]
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error!r}): measure again with `make bench-{name}`") from error


def _loss_gap(part: Mapping[str, Any], title: str) -> Table:
    rows = Table("way", "loss", "gap", "prepare, ms", "speed", "model, s", title=title)
    for column in rows.columns[1:]:
        column.justify = "right"
    reference = part["reference"]
    for way, label in WAYS.items():
        found = part[way]
        speed = reference["prepare_s"] / found["prepare_s"]
        rows.add_row(
            label,
            f"{found['loss']:.6f}",
            f"{found['loss'] - reference['loss']:+.1e}",
            f"{1e3 * found['prepare_s']:.0f}",
            f"{speed:.1f}x",
            f"{found['model_s']:.1f}",
        )
    return rows
