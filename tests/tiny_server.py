"""A tiny policy in a folder, and a server of it in a process of its own."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from tailorbird.checkpoint.policy import write_policy
from tailorbird.processing.image import ImageSpec
from tailorbird.processing.normalize import Normalizer
from tailorbird.processing.pipeline import Pipeline
from tailorbird.processing.text import InstructionTokenizer, train_tokenizer
from tiny import TINY_VLA, new_model


def write_tiny(
    folder: Path, *, state_dim: int = 4, action_dim: int = 2, cameras: Sequence[str] = ("top",)
) -> Path:
    """An untrained policy in Tailorbird's own layout."""
    cfg = replace(TINY_VLA, state_dim=state_dim, action_dim=action_dim, num_steps=2)
    state, action = (Normalizer(mean=(0.1,) * num, std=(0.5,) * num) for num in (state_dim, action_dim))
    pipeline = Pipeline(
        cameras=tuple(cameras),
        image=ImageSpec(size=16),
        state=state,
        action=action,
        tokenizer=InstructionTokenizer(train_tokenizer(["reach the cube"], 290), 64),
        hz=20.0,
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_policy(folder, new_model(cfg).state_dict(), cfg, pipeline)
    return folder


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[str]
    port: int

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def rss_mib(self) -> float:
        """Resident memory; of Linux."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def serving(policy: Path, *options: object, keys: Sequence[str] = ()) -> Iterator[Server]:
    """A server of the policy, on a free port unless the options say otherwise; killed at the end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TAILORBIRD_API_KEY": " ".join(keys)}
    words = [sys.executable, "-m", "tailorbird", "serve", "policy", str(policy), *map(str, options)]
    if "--port" not in words:
        words += ["--port", "0"]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        try:
            yield Server(process, _port_of(process, errors))
        finally:
            process.kill()
            process.communicate()


def _port_of(process: subprocess.Popen[str], errors: IO[str]) -> int:
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if found := re.search(r"wss?://[^\s:]+:(\d+)", line):
            return int(found.group(1))
    errors.seek(0)
    raise AssertionError(f"the server did not start: {''.join(said)}{errors.read()[-2000:]}")
