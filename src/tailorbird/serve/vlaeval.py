"""What vla-eval's harness says and hears, protocol version 1."""

from __future__ import annotations

import time
from collections import deque
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tailorbird.codec import as_observation, pack
from tailorbird.errors import DataError
from tailorbird.provenance import versions
from tailorbird.serve.about import About
from tailorbird.serve.batcher import OLD_EPISODE, SUPERSEDED, Answer, Refusal

if TYPE_CHECKING:
    from tailorbird.serve.peer import Peer

PROTOCOL_VERSION = 1


def _message(kind: str, payload: dict[str, Any], seq: int) -> dict[str, Any]:
    return {"type": kind, "payload": payload, "seq": seq, "timestamp": time.time()}


@cache
def _release() -> str:
    """Looked up once: that takes the loop, which all robots share, milliseconds."""
    return f"tailorbird {versions().get('tailorbird', 'unknown')}"


def hello(about: About) -> dict[str, Any]:
    """What the server is, and what it wants to be sent."""
    wanted = {"send_state": True, "send_wrist_image": len(about.cameras) > 1}
    payload = {
        "harness_version": _release(),
        "protocol_version": PROTOCOL_VERSION,
        "model_server": "tailorbird",
        "capabilities": {},
        "observation_params": wanted,
    }
    return _message("hello", payload, 0)


class VlaEval:
    """One action for each observation: a chunk is handed out one by one.

    Live, the robot does not wait: actions whose ticks are past when their chunk is ready are dropped, and
    nothing is said about observations that need no answer.
    """

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._greeted = False
        self._live = False
        self._left: deque[NDArray[np.float32]] = deque()
        self._ticks = 0  # observations of this episode

    async def take(self, message: dict[Any, Any]) -> None:
        """Raises DataError for what cannot be meant."""
        kind, payload, seq = message.get("type"), message.get("payload"), message.get("seq")
        if not isinstance(payload, dict) or type(seq) is not int:
            raise DataError("a message of vla-eval has type, payload, seq and timestamp")
        if kind == "hello":
            if self._greeted:  # the first one was answered before it was asked
                self._peer.send(pack({**hello(self._peer.served.about), "seq": seq}, text_keys=True))
            self._greeted = True
        elif kind in ("episode_start", "episode_end"):
            self._live = kind == "episode_start" and payload.get("mode") == "live"
            self._left.clear()
            self._ticks = 0
            self._peer.robot.begin(0)
            self._peer.served.batcher.forget(self._peer.robot, OLD_EPISODE)
        elif kind == "observation":
            await self._observe(payload, seq)
        elif kind != "error":
            raise DataError("types are hello, observation, episode_start, episode_end and error")

    async def _observe(self, payload: dict[Any, Any], seq: int) -> None:
        tick = self._ticks
        self._ticks += 1
        if self._left:
            self._act(self._left.popleft(), seq)
            return
        deliver = partial(self._deliver, seq, tick)
        images, state = payload.get("images"), payload.get("states", payload.get("state"))
        try:
            if not isinstance(images, dict):
                raise DataError(
                    f"an observation needs images by name: the payload has {sorted(map(str, payload))}"
                )
            seen = as_observation(images, state, payload.get("task_description", ""), {})
        except DataError as error:
            self._peer.refuse(str(error), deliver)
            return
        await self._peer.ask(seen, 0.0, deliver)

    def _deliver(self, seq: int, tick: int, outcome: Answer | Refusal) -> None:
        if isinstance(outcome, Refusal):
            if not (self._live and outcome in (SUPERSEDED, OLD_EPISODE)):
                error = {"error": f"{outcome.code}: {outcome.message}"}
                self._peer.send(pack(_message("error", error, seq), text_keys=True))
            return
        past = self._ticks - 1 - tick if self._live else 0
        self._left = deque(outcome.chunk.actions[past:][: self._peer.served.cfg.execute or None])
        if self._left:
            self._act(self._left.popleft(), seq)
        if self._left:
            self._peer.served.batcher.forget(self._peer.robot, SUPERSEDED)

    def _act(self, action: NDArray[np.float32], seq: int) -> None:
        self._peer.send(pack(_message("action", {"actions": action}, seq), text_keys=True))
