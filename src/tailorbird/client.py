"""A policy that runs elsewhere, for the robot's computer: NumPy, msgpack and websockets are enough."""

import logging
import random
import socket
import threading
import time
from _thread import start_new_thread
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from ssl import SSLCertVerificationError, SSLContext, create_default_context
from typing import Any
from urllib.parse import urlsplit

from tailorbird.errors import ConfigError, ConnectionLost, DataError
from tailorbird.wire import ActionChunk, Observation, is_loopback

try:
    from websockets.exceptions import InvalidStatus, InvalidURI, WebSocketException
    from websockets.sync.client import ClientConnection, connect

    from tailorbird.codec import (
        MAX_COUNT,
        Answered,
        Caps,
        Tag,
        decode_answer,
        encode_observation,
        number,
        unpack,
    )
except ImportError as error:
    raise ConfigError(f"{error}. Install what talks to servers: pip install 'tailorbird[serve]'") from error

log = logging.getLogger(__name__)
BACKOFF_S = 0.05, 1.0  # after the first failure to connect, and at most; each pause is twice the last
PING_S = 5.0  # silence after which the server is asked whether it is there, and time that it has to answer
CLOSE_S = 0.5  # for the server to answer a goodbye, and to take it at all
KEPT = 1000  # round trips
REFUSED = {
    401: "it does not know the key: name it with api_key=",
    403: "it does not let this client in: is something between that adds an origin?",
    404: "there is no policy at that path",
}


@dataclass(kw_only=True)
class Stats:
    """What a client went through.

    cached: calls that were answered with what was left of the last chunk.
    late: answers that did not come in time. connections: 1 if it was never lost.
    trip_ms, server_ms: of the newest answers, from call to return, and what the server says it spent of that.
    """

    answered: int = 0
    cached: int = 0
    failed: int = 0
    late: int = 0
    connections: int = 0
    trip_ms: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    server_ms: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))


class PolicyClient:
    """Observation to chunk, as a `Policy`, from a server of Tailorbird. It connects when it is first asked.

    While the server is away or late, a client that knows the rate of the actions answers with what is left of
    the last chunk of this episode, with the time of the observation that it was made for, and then, or
    without a rate, raises ConnectionLost: to hold the robot meanwhile is for the control loop's guard, which
    knows what holding means for it. Only one call goes at a time; `reset` and `close` may come from another
    thread. A call that is on its way then fails; one after `close` connects again.

    Attributes:
        stats: see `Stats`.
        metadata: what the server said of its policy: cameras, state_dim, action_dim, chunk, hz.
    """

    def __init__(
        self,
        url: str = "ws://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        ca: Path | None = None,
        timeout_s: float = 2.0,
        hz: float | None = None,
    ) -> None:
        """
        Args:
            url: ws://HOST:PORT, or wss:// with TLS.
            ca: PEM file of the certificate to trust, for one that is not signed by a known authority.
            timeout_s: for a call, with all that it sends. The server drops what waits longer.
            hz: actions a second. None is what the server says; if it says none, only new chunks are answers.
        Raises:
            ConfigError: the address, the certificate or a number cannot be used.
        """
        if not (timeout_s > 0 and (hz is None or hz > 0)):
            raise ConfigError(f"{timeout_s=} and {hz=} must be positive")
        if not url.startswith(("ws://", "wss://")) or (ca is not None and url.startswith("ws://")):
            raise ConfigError(
                f"{url} must be ws://HOST:PORT, or wss://HOST:PORT, which alone has certificates"
            )
        self.stats, self.metadata = Stats(), dict[str, Any]()
        self._url, self._timeout_s, self._hz = url, timeout_s, hz
        self._headers = {"Authorization": f"Api-Key {api_key}"} if api_key else None
        self._tls = _trusting(ca) if url.startswith("wss://") else None
        if api_key and self._tls is None and not is_loopback(urlsplit(url).hostname or ""):
            log.warning("the key and the pictures go to %s in clear: wss:// encrypts them", url)
        self._lock, self._exchange = threading.Lock(), threading.Lock()  # of calls; of the socket, and short
        self._socket: ClientConnection | None = None
        self._num_closed = 0
        self._session, self._seq = "", 0
        self._episode = (0, 0)  # generation and seed: exchanged together, so that a call sees both or neither
        self._last: tuple[int, ActionChunk] | None = None  # of which generation, and the chunk
        self._pause_s, self._again_s, self._why = BACKOFF_S[0], 0.0, ""

    def reset(self, seed: int = 0) -> None:
        """Begin an episode: no chunk of an older one is returned from here on.

        Raises ConfigError when the seed is negative, or more than 2**53.
        """
        if not 0 <= seed <= MAX_COUNT:
            raise ConfigError(f"{seed=} must be from 0 to 2**53")
        self._episode = (self._episode[0] + 1, seed)

    def connect(self) -> None:
        """Connect now, rather than when first asked; then there is `metadata`.

        Raises:
            ConnectionLost: the server is away.
            ConfigError: it does not let us in, is of another kind, or has another rate.
        """
        with self._lock:
            self._connected(time.monotonic() + self._timeout_s, patient=True)

    def close(self) -> None:
        """Say goodbye, for which a server that does not listen has a second at most."""
        with self._exchange:
            self._num_closed += 1
        self._drop()

    def __call__(self, seen: Observation) -> ActionChunk:
        """A chunk for what is seen.

        Raises:
            ConnectionLost: the server is away or late, and nothing is left of the last chunk; or the episode
                ended meanwhile.
            DataError: the server cannot use the observation.
            ConfigError: the server does not let us in, cannot do what is asked, or has another rate.
        """
        with self._lock:
            episode = self._episode
            left = self._left(seen, episode[0])
            try:
                chunk = self._ask(seen, episode, patient=left is None)
                self.stats.answered += 1
            except ConnectionLost:
                if left is None:
                    self.stats.failed += 1
                    raise
                self.stats.cached += 1
                chunk = left
            if episode != self._episode:
                raise ConnectionLost("a new episode began while the server was thinking: ask it again")
            return chunk

    def _ask(self, seen: Observation, episode: tuple[int, int], *, patient: bool) -> ActionChunk:
        began = time.monotonic()
        until_s = began + self._timeout_s
        there = self._connected(until_s, patient)
        self._seq += 1
        tag = Tag(
            session=self._session,
            seq=self._seq,
            generation=episode[0],
            reset=episode[1],
            deadline_ms=1e3 * max(1e-3, until_s - time.monotonic()),
        )
        message = encode_observation(seen, tag)
        try:
            with _cut_off(there, until_s):
                there.send(message)
            answered = self._answer(there, tag, until_s)
        except ConnectionLost:  # an OSError too, of a connection that is there still
            raise
        except DataError as error:
            self._drop()
            raise ConnectionLost(f"{self._url} does not speak our language: {error}") from error
        except (WebSocketException, OSError) as error:
            self._drop()
            raise ConnectionLost(f"the connection to {self._url} broke ({error}): ask again") from error
        if answered.code == "bad-observation":
            raise DataError(f"{self._url}: {answered.message}")
        if answered.code == "bad-request":
            raise ConfigError(f"{self._url}: {answered.message}")
        if answered.chunk is None:
            raise ConnectionLost(f"{self._url} has no chunk, {answered.code}: {answered.message}")
        trip_ms, queue_ms = 1e3 * (time.monotonic() - began), answered.server_ms.get("queue_ms", 0.0)
        server_ms = queue_ms + answered.server_ms.get("infer_ms", 0.0)
        self.stats.trip_ms.append(trip_ms)
        self.stats.server_ms.append(server_ms)
        spent = {**answered.chunk.infer_ms, "queue": queue_ms, "wire": max(0.0, trip_ms - server_ms)}
        chunk = replace(answered.chunk, time_s=seen.time_s, infer_ms=spent)
        self._last = episode[0], chunk
        return chunk

    def _answer(self, there: ClientConnection, tag: Tag, until_s: float) -> Answered:
        """What the server says to the tag; answers to older ones, which came too late, are left."""
        while True:
            try:
                answered = decode_answer(unpack(_received(there, until_s), Caps()))
            except TimeoutError:
                self.stats.late += 1
                late = f"{self._url} did not answer within {self._timeout_s:g} s"
                raise ConnectionLost(f"{late}: raise timeout_s=, or lower its load") from None
            if answered.tag.seq == tag.seq:
                return answered

    def _left(self, seen: Observation, generation: int) -> ActionChunk | None:
        """What is still to be done of the last chunk, from the tick of an observation on."""
        hz = self._hz or self.metadata.get("hz")
        if not hz or self._last is None or self._last[0] != generation:
            return None
        chunk = self._last[1]
        past = round((seen.time_s - chunk.time_s) * hz)
        if not 0 <= past < len(chunk.actions):
            return None
        return replace(chunk, actions=chunk.actions[past:], infer_ms={})

    def _connected(self, until_s: float, patient: bool) -> ClientConnection:
        """The connection, made anew when it was lost; who is not patient has something else to go on with."""
        num_closed = self._num_closed
        while (there := self._socket) is None:
            pause_s = self._again_s - time.monotonic()
            if pause_s > 0 and (not patient or time.monotonic() + pause_s > until_s):
                raise ConnectionLost(f"{self._url} is away{self._why}: start it, or wait until it is back")
            time.sleep(max(0.0, pause_s))
            self._open(until_s, num_closed)
        return there

    def _open(self, until_s: float, num_closed: int) -> None:
        """One attempt; after one that failed, the next is made later, and not by all robots at once.

        Raises ConnectionLost when the client was closed since `num_closed` was read.
        """
        opened: ClientConnection | None = None
        try:
            opened = connect(
                self._url,
                additional_headers=self._headers,
                compression=None,
                max_size=Caps().num_bytes,
                open_timeout=max(1e-3, until_s - time.monotonic()),
                ping_interval=PING_S,
                ping_timeout=PING_S,
                close_timeout=CLOSE_S,
                proxy=None,
                ssl=self._tls,
                legacy=True,  # it outlives this block
            )
            self._greeted(unpack(_received(opened, until_s), Caps()))
        except ConfigError:
            _end(opened)
            raise
        except InvalidStatus as error:
            if (status := error.response.status_code) in REFUSED:
                raise ConfigError(f"{self._url}: {REFUSED[status]}") from None
            self._wait_longer(
                f" ({status}: {'it lets nobody in yet' if status == 503 else 'it has a fault'})"
            )
        except InvalidURI as error:
            raise ConfigError(f"{self._url} is no address: {error}") from None
        except SSLCertVerificationError as error:
            why = error.verify_message
            raise ConfigError(
                f"{self._url}: its certificate is not trusted ({why}): name it with ca="
            ) from None
        except (WebSocketException, OSError) as error:
            _end(opened)
            self._wait_longer(f" ({error})")
        except (DataError, KeyError, TypeError, ValueError) as error:
            _end(opened)
            raise ConfigError(f"{self._url} is no policy server of Tailorbird") from error
        else:
            self._keep(opened, num_closed)

    def _greeted(self, greeting: Any) -> None:
        """Raises KeyError, TypeError, ValueError: it is none. ConfigError: the server has another rate."""
        self._session, self.metadata = str(greeting["session"]), dict(greeting["metadata"])
        hz = number(self.metadata.get("hz") or 0, "hz")
        if hz and self._hz and hz != self._hz:
            raise ConfigError(
                f"the policy at {self._url} gives {hz:g} actions a second, not {self._hz:g}: set hz={hz:g}"
            )

    def _keep(self, opened: ClientConnection, num_closed: int) -> None:
        with self._exchange:
            is_wanted = num_closed == self._num_closed
            if is_wanted:
                self._socket, self._seq, self._pause_s = opened, 0, BACKOFF_S[0]
                self.stats.connections += 1
        if not is_wanted:
            _end(opened)
            raise ConnectionLost(f"the client of {self._url} was closed meanwhile: ask it again")

    def _wait_longer(self, why: str) -> None:
        self._why = why
        self._again_s = time.monotonic() + self._pause_s * random.uniform(0.5, 1.0)
        self._pause_s = min(2 * self._pause_s, BACKOFF_S[1])

    def _drop(self) -> None:
        with self._exchange:
            there, self._socket = self._socket, None
        _end(there)


@contextmanager
def _cut_off(there: ClientConnection, until_s: float) -> Iterator[None]:
    """End a connection if the block takes longer, whichever thread is stuck in it.

    A server that has stopped takes nothing any more, and a timeout of the socket's own would hold for each
    record of TLS and for what is received, too.
    """

    done = threading.Event()

    def cut() -> None:
        if not done.wait(max(0.0, until_s - time.monotonic())):
            with suppress(OSError):
                socket.socket.shutdown(there.socket, socket.SHUT_RDWR)  # TLS's own would go on in clear

    start_new_thread(cut, ())  # where a Timer would wait until its thread runs, long on a busy machine
    try:
        yield
    finally:
        done.set()


def _end(there: ClientConnection | None) -> None:
    if there is not None:
        with _cut_off(there, time.monotonic() + CLOSE_S):
            there.close()


def _received(there: ClientConnection, until_s: float) -> bytes:
    """Raises TimeoutError, and ConnectionLost for text, which is what goes wrong."""
    frame = there.recv(timeout=max(0.0, until_s - time.monotonic()))
    if isinstance(frame, str):
        raise ConnectionLost(f"the server says: {frame}")
    return frame


def _trusting(ca: Path | None) -> SSLContext:
    """Raises ConfigError when the file holds no certificate."""
    try:
        return create_default_context(cafile=ca)
    except OSError as error:
        raise ConfigError(f"no certificate to trust in {ca}: {error}") from None
