"""What a run says while it runs: metrics.jsonl always, TensorBoard where it is installed."""

import json
from pathlib import Path
from typing import Any, Self

from tailorbird.errors import DataError
from tailorbird.storage import explained, new_file


class Metrics:
    """Appends rows to metrics.jsonl, and to TensorBoard's event files beside it.

    On resume the rows after `step` are dropped: they will be made again.
    """

    def __init__(self, run: Path, step: int) -> None:
        self.path = run / "metrics.jsonl"
        kept = [row for row in read_metrics(run) if row["step"] <= step]
        with new_file(self.path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:  # the extra [log] is not installed
            self._board = None
        else:
            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def add(self, step: int, **values: float) -> None:
        with explained(self.path):
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
            if self._board is not None:
                for name, value in values.items():
                    self._board.add_scalar(name, value, step)

    def close(self) -> None:
        if self._board is not None:
            with explained(self.path):
                self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
