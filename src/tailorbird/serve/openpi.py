"""What openpi's clients say and hear, and what our own adds to it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from tailorbird.codec import Tag, decode_observation, decode_tag, encode_chunk, encode_refusal
from tailorbird.errors import DataError
from tailorbird.serve.batcher import OLD_EPISODE, Answer, Refusal

if TYPE_CHECKING:
    from tailorbird.serve.peer import Peer


class OpenPI:
    """A map for each observation and one for each chunk; what went wrong is text, or a map for our client."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._last_ms: float | None = None

    async def take(self, message: dict[Any, Any]) -> None:
        """Raises DataError for what cannot be meant, PermissionError for what was said before."""
        tag = decode_tag(message)
        deliver = partial(self._deliver, tag)
        if tag is not None and not self._follow(tag):
            deliver(OLD_EPISODE)
            return
        try:
            seen = decode_observation(message)
        except DataError as error:
            self._peer.refuse(str(error), deliver)
            return
        await self._peer.ask(seen, 0.0 if tag is None else tag.deadline_ms, deliver)

    def _follow(self, tag: Tag) -> bool:
        """Whether the tag is of the episode at hand, or begins the next."""
        robot = self._peer.robot
        if tag.session and tag.session != robot.name:
            raise PermissionError("this session belongs to another connection")
        if tag.seq and tag.seq <= robot.seq:
            raise PermissionError("this message was sent before")
        robot.seq = max(robot.seq, tag.seq)
        if tag.generation > robot.generation:
            robot.begin(tag.reset, tag.generation)
            self._peer.served.batcher.forget(robot, OLD_EPISODE)
        return tag.generation == robot.generation

    def _deliver(self, tag: Tag | None, outcome: Answer | Refusal) -> None:
        if isinstance(outcome, Refusal):
            self._peer.send(encode_refusal(outcome.code, outcome.message, tag))
            return
        timing = {"infer_ms": outcome.model_ms, "queue_ms": outcome.queue_ms}
        if self._last_ms is not None:
            timing["prev_total_ms"] = self._last_ms
        self._last_ms = outcome.model_ms + outcome.queue_ms
        self._peer.send(encode_chunk(outcome.chunk, tag, timing))
