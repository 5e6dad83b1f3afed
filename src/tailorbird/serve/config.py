"""Settings of the policy server. Importable without torch."""

from dataclasses import dataclass
from pathlib import Path

from tailorbird.errors import ConfigError
from tailorbird.wire import is_loopback


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Where a policy is served, to whom, and how much of it.

    Attributes:
        host: address to listen on; whatever is not of this machine needs a key.
        port: 0 takes a free one, and it is printed.
        max_batch: observations of different robots that are answered by one call of the model.
        deadline_ms: what waits longer is dropped before it is computed; a request may ask for less.
        execute: actions of a chunk that a client of vla-eval gets before the next is made; 0 is all of them.
        max_sessions: robots at a time.
        max_frame_mb: MB of one message. A robot can make the server hold about eight of them at a time: on
            their way, being looked into, as pictures that wait, and as pictures that are computed.
        max_rate_hz: messages a second of one robot, on average over a second; each MB counts as one more.
        handshake_s: for a connection to say what it wants. Twice as many connections as robots may do so at
            once, and 16 more; then the oldest makes room. They do not count before TLS is agreed on: there
            the operating system's limit on open files holds.
        ping_s: silence after which a peer is asked whether it is there, and time it has to answer.
        grace_s: for what is being computed when the server is told to end.
        api_key_file: one key a line. Without it, TAILORBIRD_API_KEY may hold one.
        cert, cert_key: PEM files of the certificate and its key, for TLS.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    max_batch: int = 16
    deadline_ms: float = 10_000.0
    execute: int = 0
    max_sessions: int = 128
    max_frame_mb: int = 8
    max_rate_hz: float = 250.0
    handshake_s: float = 10.0
    ping_s: float = 20.0
    grace_s: float = 10.0
    api_key_file: Path | None = None
    cert: Path | None = None
    cert_key: Path | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"{self.port=} must be from 0, for any that is free, to 65535")
        least = min(self.max_batch, self.max_sessions, self.max_frame_mb)
        if least < 1 or self.execute < 0:
            raise ConfigError(f"batch, sessions and frame must be at least 1, execute at least 0: {self}")
        times = (self.deadline_ms, self.max_rate_hz, self.handshake_s, self.ping_s, self.grace_s)
        if not all(0 < one < float("inf") for one in times):
            raise ConfigError(f"deadline, rate, handshake, ping and grace must be positive: {self}")
        if (self.cert is None) != (self.cert_key is None):
            raise ConfigError("TLS needs both --cert and --cert-key")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)
