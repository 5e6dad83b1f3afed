"""What a run says while it runs: metrics.jsonl always, and where else it is asked to."""

import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from tailorbird.errors import ConfigError, DataError
from tailorbird.storage import explained, new_file
from tailorbird.train.config import Logger

PROJECT = "tailorbird"
UNUSABLE = ("dropped", "shortened")  # figures are named KIND/SOURCE/REASON


class Board(Protocol):
    """Something else that figures go to."""

    def add(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Metrics:
    """Appends rows to metrics.jsonl, and to other boards.

    On resume the rows after `step` are dropped: they will be made again.

    Raises:
        ConfigError: a board was asked for that is not installed.
    """

    def __init__(self, run: Path, step: int, boards: Sequence[Logger] = ("tensorboard",)) -> None:
        self.path = run / "metrics.jsonl"
        self._boards = [board for name in boards if (board := _open(name, run, step)) is not None]
        kept = [row for row in read_metrics(run) if row["step"] <= step]
        with new_file(self.path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def add(self, step: int, **values: float) -> None:
        with explained(self.path):
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
            for board in self._boards:
                board.add(step, values)

    def close(self) -> None:
        with explained(self.path):
            for board in self._boards:
                board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(name: Logger, run: Path, step: int) -> Board | None:
    if name == "tensorboard":
        try:
            return _TensorBoard(run, step)
        except ImportError:  # it is the default, and the extra [log] is not installed
            return None
    try:
        return _Remote(importlib.import_module(name), name, run)
    except ImportError as error:
        raise ConfigError(
            f"--train.log {name} needs {name} ({error}): pip install 'tailorbird[{name}]', or leave it out"
        ) from None


class _TensorBoard:
    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Remote:
    """Weights and Biases, and trackio, which has the same functions. A continued run is the same run there.

    What it made between its last checkpoint and an interruption it says again: both keep what they heard
    first.
    """

    def __init__(self, package: Any, name: str, run: Path) -> None:
        self._package = package
        where = run.resolve()
        key = f"{where.name}-{hashlib.sha256(str(where).encode()).hexdigest()[:8]}"
        if name == "wandb":
            package.init(project=PROJECT, name=where.name, id=key, resume="allow", dir=str(where))
        else:
            package.init(project=PROJECT, name=key, resume="allow", embed=False)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self._package.log(dict(values), step=step)

    def close(self) -> None:
        self._package.finish()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All rows so far; a last line that a crash cut short is left out."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise DataError(f"{path}, line {number}, is damaged: {error}. Remove that line") from error
    return rows


def count_unusable(rows: Sequence[Mapping[str, float]]) -> list[tuple[str, str, str, int]]:
    """What was dropped or shortened: kind, source, reason and number, the most of each kind first."""
    found = []
    for name, num in {name: value for row in rows for name, value in row.items()}.items():
        kind, _, rest = name.partition("/")
        source, _, reason = rest.rpartition("/")
        if kind in UNUSABLE and source:
            found.append((kind, source, reason, int(num)))
    return sorted(found, key=lambda one: (UNUSABLE.index(one[0]), -one[3]))
