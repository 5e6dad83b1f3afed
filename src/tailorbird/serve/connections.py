"""Connections of websockets, of which there are only so many, and none of which may leave much unread."""

import asyncio

from websockets.asyncio.server import ServerConnection, broadcast
from websockets.protocol import State

from tailorbird.serve.metrics import Metrics

MAX_UNREAD = 1 << 20  # bytes that a peer may leave lying, beyond what the operating systems keep


class Connection(ServerConnection):
    """One whose messages are written at once, so that an answer waits for nobody's turn."""

    metrics: Metrics

    def tell(self, message: bytes | str) -> None:
        """A peer that does not read holds up nobody else, and is left."""
        broadcast([self], message)
        self._leave_unread()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)  # which answers pings
        self._leave_unread()

    def _leave_unread(self) -> None:
        transport = self.transport
        if transport.get_write_buffer_size() > MAX_UNREAD and not transport.is_closing():
            self.metrics.refused.labels("unread").inc()
            transport.abort()


def connections(most: int, counts: Metrics) -> type[Connection]:
    """At most so many, those included that have not said what they want: the oldest of them makes room.

    With TLS one counts once it has shaken hands.
    """
    there: dict[Connection, None] = {}

    class Counted(Connection):
        metrics = counts

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            there[self] = None
            if len(there) > most:
                silent = next(one for one in there if one.protocol.state is State.CONNECTING)
                self.metrics.refused.labels("crowd").inc()
                silent.transport.abort()
                there.pop(silent)

        def connection_lost(self, exc: Exception | None) -> None:
            there.pop(self, None)
            super().connection_lost(exc)

    return Counted
