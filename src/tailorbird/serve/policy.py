"""The policy server: one port, the websocket protocols of openpi and vla-eval, and three pages for machines.

The event loop never runs the model: it has one thread of its own, in which it is warmed up before anybody
is let in.
"""

import asyncio
import gc
import http
import logging
import signal
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response

from tailorbird.codec import Caps
from tailorbird.errors import ConfigError
from tailorbird.infer.policy import Policy
from tailorbird.serve.about import about
from tailorbird.serve.answer import Answers, Worker
from tailorbird.serve.batcher import Batcher, Compute, Job, Refusal
from tailorbird.serve.config import ServeConfig
from tailorbird.serve.connections import Connection, connections
from tailorbird.serve.limits import Keys, load_keys, load_tls
from tailorbird.serve.metrics import Metrics
from tailorbird.serve.peer import Peer, Served
from tailorbird.serve.replicas import Replicas
from tailorbird.serve.spread import Spread
from tailorbird.wire import ActionChunk

log = logging.getLogger(__name__)
GOING_AWAY, TRY_LATER = 1001, 1013
SIGNALS = signal.SIGTERM, signal.SIGINT
WARM_S = 10.0  # no further batch size is warmed up once this is spent
SPARE = 16  # connections beyond twice the sessions: for pages, and for those that come and go
CLOSE_S = 2.0  # for a peer to answer a goodbye
SWITCH_S = 5e-4  # after which the model's thread lets the loop's go on; ten times as long is Python's own


class PolicyServer:
    """Serves one policy until told to end. Everything but the model's thread runs on the caller's loop."""

    def __init__(self, policy: Policy, cfg: ServeConfig, replicas: Replicas | None = None) -> None:
        """With copies elsewhere, the policy is here for what it says of itself.

        Raises ConfigError when the address is open to others without a key, or TLS cannot be had.
        """
        self.cfg, self._replicas = cfg, replicas
        self._policy, self._about, self._answers = policy, about(policy), Answers(policy)
        self._keys: Keys = load_keys(cfg)
        self._tls: ssl.SSLContext | None = load_tls(cfg)
        self._metrics = Metrics()
        self._peers = 0
        self._warm = self._ending = False

    async def run(self, stop: asyncio.Event, ready: Callable[[str], None]) -> None:
        """Serve until `stop`; `ready` is given the address once the policy is warm.

        Raises:
            ConfigError: the port is taken.
            DataError: the policy fails on an observation of its own shapes.
        """
        computes: list[Compute] = [self._think] if self._replicas is None else [*self._replicas.computes]
        workers = [Worker() for _ in computes]
        self._batcher = self._spread(
            [
                Batcher(compute, worker, self._metrics, self.cfg.max_batch)
                for compute, worker in zip(computes, workers, strict=True)
            ]
        )
        self._served = Served(
            cfg=self.cfg,
            caps=Caps(num_bytes=self.cfg.max_frame_mb << 20),
            about=self._about,
            batcher=self._batcher,
            metrics=self._metrics,
            new_session=partial(self._policy.new_session, self._about.max_view_age_s),
        )
        batches = asyncio.create_task(self._batcher.run())
        try:
            server = await self._listen()
            try:
                await self._serve(stop, lambda: ready(self._address(server)), workers[0], batches)
            finally:
                await self._end(server)
        finally:
            batches.cancel()
            for worker in workers:
                worker.shutdown()

    async def _serve(
        self, stop: asyncio.Event, ready: Callable[[], None], worker: Worker, batches: asyncio.Task[None]
    ) -> None:
        warm = asyncio.get_running_loop().run_in_executor(worker, self._warm_up)
        ended = asyncio.create_task(stop.wait())
        try:
            first: set[asyncio.Future[Any]] = {ended, warm}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if not warm.done():
                self._ending = True
                await asyncio.wait({warm}, timeout=self.cfg.grace_s)
                warm.cancel()
                return
            warm.result()
            self._warm = True
            ready()
            await asyncio.wait({ended, batches}, return_when=asyncio.FIRST_COMPLETED)
            if batches.done():
                batches.result()
        finally:
            ended.cancel()

    def _spread(self, batchers: Sequence[Batcher]) -> Spread:
        spread, loop = Spread(batchers), asyncio.get_running_loop()

        def tell(number: int, up: bool) -> None:
            with suppress(RuntimeError):  # the loop is closed: a copy that comes back may outlive the server
                loop.call_soon_threadsafe(spread.set_up, number, up)

        if self._replicas is not None:
            self._replicas.tell = tell
        return spread

    async def _listen(self) -> Server:
        """Raises ConfigError when the port is taken."""
        cfg = self.cfg
        try:
            return await serve(
                self._meet,
                cfg.host,
                cfg.port,
                process_request=self._admit,
                origins=[None],  # a browser names one: no web page shall drive a robot through its visitor
                compression=None,
                open_timeout=cfg.handshake_s,
                ping_interval=cfg.ping_s,
                ping_timeout=cfg.ping_s,
                close_timeout=CLOSE_S,
                max_size=cfg.max_frame_mb << 20,
                max_queue=2,
                server_header=None,
                logger=logging.getLogger("tailorbird.websockets"),
                create_connection=connections(2 * cfg.max_sessions + SPARE, self._metrics),
                ssl=self._tls,
                ssl_handshake_timeout=None if self._tls is None else cfg.handshake_s,
            )
        except OSError as error:
            raise ConfigError(f"cannot listen on {cfg.host}:{cfg.port}: {error.strerror}") from None

    def _admit(self, socket: ServerConnection, request: Request) -> Response | None:
        """Answer what asks for a page, refuse who has no key, and let the others in."""
        path = request.path.partition("?")[0]
        if path in ("/healthz", "/health"):
            if not self._warm:
                return socket.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "warming up\n")
            return socket.respond(http.HTTPStatus.OK, "OK\n")
        if not self._keys.admit(_only(request, "Authorization")):
            self._metrics.refused.labels("key").inc()
            return socket.respond(http.HTTPStatus.UNAUTHORIZED, "an API key is needed, and this is none\n")
        if path == "/metrics":
            return socket.respond(http.HTTPStatus.OK, self._metrics.text())
        if path != "/":
            return socket.respond(http.HTTPStatus.NOT_FOUND, "there are /, /healthz and /metrics\n")
        if not self._warm:
            return socket.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "warming up: try again soon\n")
        return None

    async def _meet(self, socket: ServerConnection) -> None:
        if self._peers >= self.cfg.max_sessions:
            self._metrics.refused.labels("full").inc()
            await socket.close(TRY_LATER, "all places are taken: try again later")
            return
        assert isinstance(socket, Connection)
        self._peers += 1
        self._metrics.sessions.set(self._peers)
        try:
            await Peer(socket, self._served).run()
        finally:
            self._peers -= 1
            self._metrics.sessions.set(self._peers)

    async def _end(self, server: Server) -> None:
        """Let nobody in, finish what is there, and say goodbye; who does not answer it is left."""
        self._warm = False
        server.close(close_connections=False)
        if not await self._batcher.drain(self.cfg.grace_s):
            log.warning("the model was still computing after %g s of grace", self.cfg.grace_s)
        goodbyes = (peer.close(GOING_AWAY, "the server is shutting down") for peer in server.connections)
        await asyncio.gather(*goodbyes, return_exceptions=True)
        for other in server.all_connections:  # in the middle of a handshake, or of a page
            other.transport.abort()
        await server.wait_closed()

    def _address(self, server: Server) -> str:
        port = server.sockets[0].getsockname()[1]
        host = f"[{self.cfg.host}]" if ":" in self.cfg.host else self.cfg.host
        return f"{'wss' if self._tls else 'ws'}://{host}:{port}"

    def _warm_up(self) -> None:
        """In the model's thread: compilers and caches are filled for the sizes of batches that will come."""
        began, size = time.monotonic(), 1
        most = 0 if self._replicas is not None else self.cfg.max_batch  # copies warm themselves
        while size <= most and time.monotonic() - began < WARM_S and not self._ending:
            noise = torch.zeros(size, self._about.chunk, self._about.model_width)
            self._policy.act_batch([self._about.made_up()] * size, noise)
            size *= 2

    def _think(self, jobs: Sequence[Job], noise: Tensor) -> list[ActionChunk | Refusal]:
        """In the model's thread."""
        return self._answers([job.seen for job in jobs], [job.session for job in jobs], noise)


def _only(request: Request, name: str) -> str | None:
    """A header that was sent once; twice is as good as never."""
    found = request.headers.get_all(name)
    return found[0] if len(found) == 1 else None


def serve_policy(
    policy: Policy, cfg: ServeConfig, ready: Callable[[str], None], replicas: Replicas | None = None
) -> None:
    """Serve until SIGTERM or SIGINT, then end gracefully; a second one ends it as it is."""

    async def main() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()

        def end() -> None:
            stop.set()
            for number in SIGNALS:
                loop.remove_signal_handler(number)

        def warm(url: str) -> None:
            gc.freeze()  # of all that was loaded, nothing needs to be looked at again between two answers
            ready(url)

        for number in SIGNALS:
            loop.add_signal_handler(number, end)
        await PolicyServer(policy, cfg, replicas).run(stop, warm)

    sys.setswitchinterval(SWITCH_S)
    asyncio.run(main())
