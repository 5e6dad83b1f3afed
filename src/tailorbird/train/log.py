"""What a run says while it runs: metrics.jsonl always, TensorBoard where it is installed."""

import json
from pathlib import Path
from typing import Any, Self

from tailorbird.errors import DataError


class Metrics:
    """Appends rows to metrics.jsonl, and to TensorBoard's event files beside it.

    On resume the rows after `step` are dropped: they will be made again.
    """

    def __init__(self, run: Path, step: int) -> None:
        self.path = run / "metrics.jsonl"
        run.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_metrics(run) if row["step"] <= step]
        self.path.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self._file = self.path.open("a")
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:  # the extra [log] is not installed
            self._board = None
        else:
            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def add(self, step: int, **values: float) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
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
