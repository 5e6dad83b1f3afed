"""Tailorbird's policies by name in inspect-robots, which finds `policy` through its entry point.

inspect-robots run cubepick-reach --embodiment cubepick --policy tailorbird -P model=DIR -P state=eef_pos,...
"""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tailorbird.errors import DataError
from tailorbird.serve.limits import KEY_VARIABLE
from tailorbird.wire import ActionChunk, Observation

if TYPE_CHECKING:
    import inspect_robots

Think = Callable[[Observation], ActionChunk]


def policy(model: str, state: str, device: str = "auto", execute: int = 0) -> "RobotPolicy":
    """What `inspect_robots` makes of `--policy tailorbird` and of each `-P NAME=VALUE`.

    Args:
        model: folder or hub id of a policy, or ws://HOST:PORT of `tailorbird serve policy`, whose key is in
            the environment as TAILORBIRD_API_KEY.
        state: names of what the embodiment feels, in the order in which the policy learned them: a,b,c.
        execute: actions of each chunk that are executed; 0 is all of them.
    Raises:
        CheckpointError: there is no policy, or it is damaged.
        ConfigError: the server does not let us in.
    """
    if model.startswith(("ws://", "wss://")):
        from tailorbird.client import PolicyClient

        client = PolicyClient(model, api_key=os.environ.get(KEY_VARIABLE))
        client.connect()
        return RobotPolicy(client, client.reset, client.metadata, state.split(","), execute)
    from tailorbird.infer.policy import load_policy
    from tailorbird.serve.about import about

    own = load_policy(model, device=device)
    return RobotPolicy(own, own.reset, about(own).metadata(), state.split(","), execute)


class RobotPolicy:
    """A policy as inspect-robots sees one: `info`, `config`, `reset` and `act`.

    What the actions mean is not written in a policy, so inspect-robots warns that it cannot verify that.
    """

    def __init__(
        self,
        think: Think,
        reset: Callable[[int], None],
        facts: dict[str, Any],
        state: list[str],
        execute: int,
    ) -> None:
        from inspect_robots.policy import PolicyConfig, PolicyInfo
        from inspect_robots.spaces import Box, CameraSpec, ObservationSpace

        self._think, self._reset, self._state, self._execute = think, reset, state, execute
        self._task = ""
        cameras = tuple(CameraSpec(name=name, height=0, width=0) for name in facts["cameras"])  # any size
        self.info = PolicyInfo(
            name="tailorbird",
            action_space=Box(shape=(facts["action_dim"],)),
            observation_space=ObservationSpace(cameras=cameras, state_keys=frozenset(state)),
            control_hz=facts["hz"],
        )
        self.config = PolicyConfig(action_horizon=execute or facts["chunk"])

    def reset(self, scene: "inspect_robots.Scene") -> None:
        """The same scene begins with the same noise."""
        self._task = scene.instruction
        self._reset(scene.init_seed or 0)

    def act(self, observation: "inspect_robots.Observation") -> "inspect_robots.ActionChunk":
        from inspect_robots.types import Action
        from inspect_robots.types import ActionChunk as Chunk

        if missing := [name for name in self._state if name not in observation.state]:
            there = sorted(observation.state)
            raise DataError(f"the embodiment has no {missing}: it feels {there}, name those in state=")
        felt = [np.ravel(observation.state[name]) for name in self._state]
        chunk = self._think(
            Observation(
                images=observation.images,
                state=np.concatenate(felt).astype(np.float32),
                task=observation.instruction or self._task,
                time_s=observation.state_time,
            )
        )
        return Chunk(
            actions=[Action(data=one) for one in chunk.actions[: self._execute or None]],
            control_hz=self.info.control_hz,
            inference_latency_s=sum(chunk.infer_ms.values()) / 1e3,
        )
