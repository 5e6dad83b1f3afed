"""Stored measurements as tables for the terminal, and whether fresh ones fall behind them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table

from tailorbird.errors import ConfigError, DataError
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
FILES = {
    "policy": "policy_cpu.json",
    "vlm": "vlm_cpu.json",
    "scaling": "scaling_cpu.json",
    "server": "server_load.json",
    "control": "control_rates.json",
    "train": "train_throughput.json",
}  # the others are named as their benchmark
PEERS = {
    "policy": "lerobot",
    "vlm": "transformers",
    "pixels": "transformers",
    "loss-gap": "transformers",
    "train": "transformers",
}
TITLES = {
    "policy": "one chunk of actions",
    "vlm": "one prompt, and each token after it",
    "pixels": "preparing a picture",
    "scaling": "one call, against what is asked of it",
    "server": "one server, and all its robots",
    "control": "a loop at its rate, while the policy thinks",
    "delay": "five tasks, with a policy that takes its time",
    "soak": "driving while things break",
    "memory": "peak memory of a process that loads and answers once",
    "train": "learning from the same conversations, step by step",
}
HEADINGS = {
    "ms_p50": "ms",
    "peer_ms_p50": "peer",
    "ratio_to_float32": "to fp32",
    "max_abs_error": "error",
    "share_of_floor": "floor",
    "peak_mib": "MiB",
    "tokens_s": "tokens/s",
    "wait_share": "waits",
    "to_words": "to words",
}
FILE_ONLY = {"ms_spread", "peer", "reuse_share", "tokens_s_spread"}  # what a terminal has no room for
SHARES = {"share_of_floor", "reuse_share", "success", "held_share", "late_share", "padding", "to_words"}
TIMES = {"ratio", "ratio_to_float32"}  # how many times as fast, where there is a peer's time
# of these as many as a row has, it is known by
NAMES = ("path", "dtype", "stage", "cameras", "tiles", "context", "px", "frames", "split")
MARGIN = 0.25  # runs on a shared machine differ by less


def tables(results: Path, name: str, against: str | None = None) -> list[RenderableType]:
    """The tables of one result, and where its figures are from.

    Args:
        results: folder of the results, or the file itself.
        against: what the figures must have been measured beside.
    Raises:
        ConfigError: they were measured beside something else.
        DataError: the file is not there, or damaged.
    """
    peer = PEERS.get(name, "no other library")
    if against not in (None, peer):
        raise ConfigError(f"{name} is measured beside {peer}, not {against}: leave --against out")
    path, result = _read(results, name)
    shown = {"rows": TITLES.get(name, ""), "targets": "what was asked for"}
    needed = "targets" if name == "soak" else "rows"
    try:
        parts: list[RenderableType] = (
            [_loss_gap(result[part], PARTS[part]) for part in PARTS]
            if name == "loss-gap"
            else [_rows(result[part], shown[part]) for part in shown if part in result or part == needed]
        )
        source = (result[key] for key in ("command", "commit", "hardware", "date"))
        return [*parts, "{}, commit {}, {}, {}".format(*source)]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error!r}): measure again with `make bench-{name}`") from error


def regressions(results: Path, name: str, fresh: Path) -> list[str]:
    """The stored rows that a fresh result of the same benchmark does not reach, each in words.

    Ratios to the peer are compared, which both sides' machines cancel out of, of all rows whose number of
    cameras or tiles the fresh result has.

    Raises:
        ConfigError: these figures have no peer. DataError: a file is not there or damaged, or no row can be
            compared.
    """
    if name not in PEERS:
        raise ConfigError(f"{name} has no ratios to a peer to check: name {', '.join(PEERS)}")
    stored, found = (_ratios(*_read(path, name)) for path in (results, fresh))
    sizes = {_size(key) for key in found}
    due = {key: ratio for key, ratio in stored.items() if _size(key) in sizes}
    if not due:
        raise DataError(f"{fresh} has no row in common with the stored result: is it of `make bench-{name}`?")
    least = 1 - MARGIN
    return [
        f"{', '.join(f'{what} {one}' for what, one in key)}: "
        + (f"{found[key]:.2f}x, stored are {ratio:.2f}x" if key in found else "is missing")
        for key, ratio in due.items()
        if found.get(key, 0) < least * ratio
    ]


Key = tuple[tuple[str, Any], ...]


def _size(key: Key) -> Key:
    return tuple(part for part in key if part[0] in ("cameras", "tiles"))


def _ratios(path: Path, result: Mapping[str, Any]) -> dict[Key, float]:
    """Ratios by what their rows are known by."""
    try:
        return {
            tuple((name, row[name]) for name in NAMES if name in row): float(row["ratio"])
            for row in result["rows"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} has no ratios to a peer ({error!r}): is it a result?") from error


def _read(results: Path, name: str) -> tuple[Path, Any]:
    path = results / FILES.get(name, f"{name.replace('-', '_')}.json") if results.is_dir() else results
    if not path.is_file():
        where = path if path.suffix else path / FILES.get(name, f"{name.replace('-', '_')}.json")
        raise DataError(f"{where} does not exist: run `make bench-{name}` in a checkout, or name --results")
    return path, read_json(path)


def _rows(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Whatever the rows say in one number or word, as far as there is room."""
    said = dict.fromkeys(key for row in rows for key, one in row.items() if not isinstance(one, dict))
    keys = [key for key in said if key not in FILE_ONLY]
    headings = (HEADINGS.get(key, key.replace("_", " ")) for key in keys)
    table = Table(*headings, title=title, box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for key, column in zip(keys, table.columns, strict=True):
        if not any(isinstance(row.get(key), str) for row in rows):
            column.justify = "right"
    for row in rows:
        table.add_row(*(cell(key, row.get(key)) for key in keys))
    table.width = Console(width=400).measure(table).maximum  # a narrow terminal wraps, and cuts no figure
    return table


def cell(key: str, value: Any) -> str:
    """One figure of a row, as precise as it is worth."""
    match value:
        case None:
            return ""
        case bool() | str() | int():
            return str(value)
        case float() if key in SHARES:
            return f"{value:.0%}"
        case float() if key == "wait_share":
            return f"{value:.1%}"
        case float() if key == "loss":
            return f"{value:.4f}"
        case float() if key in TIMES:
            return f"{value:.2f}x"
        case float() if key == "pcc":
            return f"{value:.6f}"
        case float() if "error" in key:
            return f"{value:.1e}"
        case float():
            return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
        case _:
            return ", ".join(cell(key, one) for one in value)


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
