"""A real policy server on a real socket, and what tests say to it."""

import asyncio
import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import torch
from torch import Tensor
from websockets.sync.client import ClientConnection, connect

from lerobot_folder import MODEL, make_pipeline
from tailorbird.codec import Caps, Tag, encode_observation, pack, unpack
from tailorbird.infer.policy import Policy
from tailorbird.infer.session import Session
from tailorbird.model.init import initialise
from tailorbird.model.vla import VLA
from tailorbird.serve.config import ServeConfig
from tailorbird.serve.policy import PolicyServer
from tailorbird.wire import ActionChunk, Observation

SOON_S = 20.0  # a machine under load still answers in this


class Watched(Policy):
    """A policy whose calls are kept, and wait while `gate` is closed."""

    def __init__(self, **changes: Any) -> None:
        """changes: of the pipeline."""
        model = VLA(MODEL)
        initialise(model, 0)
        super().__init__(model, make_pipeline(**changes))
        self.calls: list[list[Observation]] = []
        self.entered, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def act_batch(
        self,
        seen: Sequence[Observation],
        noise: Tensor | None = None,
        sessions: Sequence[Session] | None = None,
    ) -> list[ActionChunk]:
        self.calls.append(list(seen))
        self.entered.set()
        assert self.gate.wait(SOON_S)
        return super().act_batch(seen, noise, sessions)

    def shut(self) -> None:
        """The next call waits for the gate; `entered` says that it does."""
        self.gate.clear()
        self.entered.clear()
        self.calls.clear()

    def noise(self, seed: int, nth: int = 0) -> Tensor:
        """The noise of the nth chunk of an episode, (1, L, action_dim)."""
        session = self.new_session()
        session.reset(seed)
        return [session.noise() for _ in range(nth + 1)][-1]


@contextmanager
def serving(policy: Policy, **changes: Any) -> Iterator[str]:
    """The address of a server in a thread of its own. changes: of its settings."""
    found: list[str] = []
    stop: list[Callable[[], None]] = []
    ready = threading.Event()

    def run() -> None:
        async def main() -> None:
            end = asyncio.Event()
            loop = asyncio.get_running_loop()
            stop.append(lambda: loop.call_soon_threadsafe(end.set))

            def tell(url: str) -> None:
                found.append(url)
                ready.set()

            await PolicyServer(policy, ServeConfig(**{"port": 0, "max_batch": 4, **changes})).run(end, tell)

        try:
            asyncio.run(main())
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(SOON_S)
        assert found, "the server did not start"
        yield found[0]
    finally:
        stop[0]()
        thread.join(SOON_S)
        assert not thread.is_alive()


def look(seed: int = 0, **changes: Any) -> Observation:
    """What the policy's two cameras and five joints may say."""
    random = np.random.default_rng(seed)
    images = {
        name: random.integers(0, 256, (height, width, 3), np.uint8)
        for name, height, width in (("top", 20, 30), ("image", 24, 32))
    }
    state = np.append(random.normal(size=4), 4.0).astype(np.float32)
    return Observation(**{"images": images, "state": state, "task": "go", "time_s": float(seed), **changes})


def meet(url: str, **options: Any) -> AbstractContextManager[ClientConnection]:
    return connect(url, compression=None, max_size=None, proxy=None, **options)


def hear(socket: ClientConnection) -> Any:
    """The next message, unpacked; text as it is."""
    frame = socket.recv(timeout=SOON_S)
    return frame if isinstance(frame, str) else unpack(frame, Caps())


def plain(seen: Observation) -> bytes:
    """As openpi's own client says it."""
    pictures = {f"observation/{name}": picture for name, picture in seen.images.items()}
    return pack({**pictures, "observation/state": seen.state, "prompt": seen.task})


def tagged(seen: Observation, **tag: Any) -> bytes:
    return encode_observation(seen, Tag(**tag))


def expected(policy: Policy, seen: Observation, noise: Tensor) -> Any:
    return Policy.act_batch(policy, [seen], noise)[0].actions


def page(url: str, path: str) -> str:
    with urlopen(url.replace("ws://", "http://") + path, timeout=SOON_S) as answer:
        return str(answer.read().decode())


@contextmanager
def taken(url: str, num: int) -> Iterator[None]:
    """Leaves the block when the server has taken in so many messages since its beginning."""

    def count() -> float:
        lines = page(url, "/metrics").splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("tailorbird_requests_total"))

    began, end = count(), time.monotonic() + SOON_S
    yield
    while count() < began + num:
        assert time.monotonic() < end
        time.sleep(0.002)


def free_port() -> int:
    """One that nothing takes between now and the server's start: below those that systems hand out."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue


def self_signed(folder: Path) -> tuple[Path, Path]:
    """PEM files of a certificate for 127.0.0.1 and of its key."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["-out", str(cert), "-keyout", str(key), *name]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    subprocess.run(
        ["openssl", "req", "-x509", *curve, "-nodes", "-days", "2", *made], check=True, capture_output=True
    )
    return cert, key


torch.set_num_threads(1)
