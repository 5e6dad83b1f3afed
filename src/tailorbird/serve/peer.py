"""One connection, whichever of the two protocols it speaks: each message says so by its keys."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from websockets.exceptions import ConnectionClosed

from tailorbird.codec import Caps, Compressed, pack, unpack
from tailorbird.errors import DataError
from tailorbird.infer.session import Session
from tailorbird.serve.about import About
from tailorbird.serve.batcher import Answer, Job, Refusal, Robot
from tailorbird.serve.config import ServeConfig
from tailorbird.serve.connections import Connection
from tailorbird.serve.limits import MAX_WORDS, Rate
from tailorbird.serve.metrics import Metrics
from tailorbird.serve.openpi import OpenPI
from tailorbird.serve.spread import Spread
from tailorbird.serve.vlaeval import VlaEval, hello

BAD_DATA, POLICY = 1007, 1008
TOLD = {1002: "protocol", 1007: "bad-data", 1009: "too-big", 1011: "silent"}  # closed by the library itself
MAX_REASON = 120  # bytes: a close frame has room for 123
GONE = Refusal("gone", "the robot has left")


class Goodbye(Exception):  # noqa: N818 (reads as what happens)
    """Ends a connection, with the code and the words that the peer sees."""

    def __init__(self, code: int, reason: str, label: str) -> None:
        super().__init__(reason)
        self.code, self.reason, self.label = code, reason, label


@dataclass(frozen=True, kw_only=True)
class Served:
    """What all connections share."""

    cfg: ServeConfig
    caps: Caps
    about: About
    batcher: Spread
    metrics: Metrics
    new_session: Callable[[], Session]


class Peer:
    """A robot, and the socket that it speaks through."""

    def __init__(self, socket: Connection, served: Served) -> None:
        self.served, self.robot = served, Robot(served.new_session)
        self._socket = socket
        self.send = socket.tell
        self._openpi, self._vlaeval = OpenPI(self), VlaEval(self)

    async def run(self) -> None:
        """Until either side ends it.

        Both protocols' clients begin by reading: openpi's a map with whatever metadata, vla-eval's, which has
        spoken by then, the answer to its greeting. One message is both, so nobody has to be waited for.
        """
        greeting = hello(self.served.about) | {"metadata": self.served.about.metadata()}
        self.send(pack({**greeting, "session": self.robot.name}))
        try:
            await self._read_all()
        except Goodbye as end:
            self.served.metrics.refused.labels(end.label).inc()
            reason = end.reason.encode("ascii", "replace")[:MAX_REASON].decode()
            goodbye = asyncio.create_task(self._socket.close(end.code, reason))
            with contextlib.suppress(ConnectionClosed):
                async for _ in self._socket:  # the peer's answer lies behind all that it had sent before
                    pass
            await goodbye
        except ConnectionClosed as end:
            if end.sent is not None and end.sent.code in TOLD:
                self.served.metrics.refused.labels(TOLD[end.sent.code]).inc()
        finally:
            self.served.batcher.forget(self.robot, GONE)

    async def ask(self, seen: Any, deadline_ms: float, deliver: Callable[[Answer | Refusal], None]) -> None:
        """Queue an observation. `deliver` is called once, with its chunk or why there is none."""
        came_s, served = time.monotonic(), self.served
        try:
            if any(isinstance(one, Compressed) for one in seen.images.values()):
                fitted = await asyncio.to_thread(served.about.fit, seen, served.caps)
            else:
                fitted = served.about.fit(seen, served.caps)
        except DataError as error:
            self.refuse(str(error), deliver)
            return
        longest = served.cfg.deadline_ms
        job = Job(
            robot=self.robot,
            session=self.robot.session,
            generation=self.robot.generation,
            seen=fitted,
            came_s=came_s,
            due_s=came_s + min(deadline_ms or longest, longest) / 1e3,
            deliver=deliver,
        )
        served.batcher.submit(job)

    def refuse(self, why: str, deliver: Callable[[Answer | Refusal], None]) -> None:
        """An observation that cannot be used is this robot's own matter, and does not end the connection."""
        self.served.metrics.dropped.labels("bad-observation").inc()
        deliver(Refusal("bad-observation", why[:MAX_WORDS]))

    async def _read_all(self) -> None:
        rate = Rate(self.served.cfg.max_rate_hz)
        async for frame in self._socket:
            if not rate.admit(1 + len(frame) / (1 << 20)):
                raise Goodbye(POLICY, f"more than {self.served.cfg.max_rate_hz:g} messages a second", "rate")
            try:
                if isinstance(frame, str):
                    raise DataError("text was sent: messages are msgpack, in binary frames")
                message = unpack(frame, self.served.caps)
                if not isinstance(message, dict):
                    raise DataError("a message is a map")
                speaker = self._vlaeval if "type" in message else self._openpi
                self.served.metrics.requests.labels(type(speaker).__name__.lower()).inc()
                await speaker.take(message)
            except DataError as error:
                raise Goodbye(BAD_DATA, str(error), "bad-data") from None
            except PermissionError as error:
                raise Goodbye(POLICY, str(error), "replay") from None
            await asyncio.sleep(0)  # of frames that came together, others' are read in between
