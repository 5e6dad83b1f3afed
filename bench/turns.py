"""Processes that compute in turn: each while it is asked, and it sleeps while others are."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from tailorbird.provenance import cores

REST_S = 0.3  # between requests: threads that spin for more work have gone to sleep by then
Answering = Callable[[dict[str, Any]], dict[str, Any]]


class Asked:
    """A process that runs a script of this folder, on all cores, and answers requests. name: for messages."""

    def __init__(self, name: str, script: str, *words: str) -> None:
        self.name, self._errors = name, tempfile.TemporaryFile("w+")  # noqa: SIM115  closed at the exit
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name(script)), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(cores())},
        )

    def __enter__(self) -> Self:
        self._read()
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def ask(self, **request: Any) -> dict[str, Any]:
        time.sleep(REST_S)
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: reading says why
            print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return json.loads(line)
        self._errors.seek(0)
        sys.exit(f"{self.name} has ended: {self._errors.read()[-2000:]}")


def answer_requests(build: Callable[[], Answering]) -> None:
    """Answer a line for each line, both JSON, with what `build` makes; what prints, prints elsewhere."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    answer = build()
    print(json.dumps({"loaded": True}), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=replies, flush=True)
