"""Where the policy of a run thinks: in a process of its own, or on a server."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from tailorbird.control.config import LoopConfig
from tailorbird.control.reuse import Reuse
from tailorbird.control.thinkers import Background, Elsewhere, Think, Thinker
from tailorbird.errors import ConfigError
from tailorbird.infer.policy import Policy, Scene, load_policy
from tailorbird.progress import console
from tailorbird.provenance import cores
from tailorbird.recipes.run_config import RunConfig
from tailorbird.wire import ActionChunk, Observation


@dataclass(frozen=True)
class Mind:
    """What thinks, and what begins an episode there."""

    thinker: Thinker[ActionChunk]
    reset: Callable[[int], None]


@contextmanager
def open_mind(policy: str, cfg: RunConfig) -> Iterator[Mind]:
    """A server's policy is asked from a thread; one from here lives in a process of its own."""
    if policy.startswith(("ws://", "wss://")):
        if cfg.mode == "reuse":
            raise ConfigError("--mode reuse needs both halves of a policy here: name a folder, not a server")
        remote = Remote(policy, cfg)
        with closing(remote.client), closing(Background(remote)) as thread:
            yield Mind(thread, remote.client.reset)
    else:
        console.print(f"loading {policy}")
        with closing(Elsewhere(partial(load_mind, policy, cfg))) as process:
            yield Mind(process, partial(process.reset, timeout_s=LoopConfig.answer_s))


class Remote:
    """A server's policy. Its key is in the environment, where no list of processes shows it."""

    def __init__(self, url: str, cfg: RunConfig) -> None:
        from tailorbird.client import PolicyClient

        keys = os.environ.get("TAILORBIRD_API_KEY", "").split()  # a server may take several
        key = keys[0] if keys else None
        self.client = PolicyClient(url, api_key=key, timeout_s=cfg.timeout_s, hz=cfg.rate)
        self._cfg = cfg

    def __call__(self, seen: Observation) -> ActionChunk:
        chunk = slowed(self.client, self._cfg.slow_ms / 1e3, seen)
        _require_rate(self.client.metadata.get("hz"), self._cfg.rate)
        return chunk


class Slowed:
    """A policy that takes so much longer, when it reads pictures and words. Its chunks say so."""

    def __init__(self, policy: Policy, delay_s: float) -> None:
        self._policy, self._delay_s = policy, delay_s
        self.act_on, self.reset = policy.act_on, policy.reset

    def look(self, seen: Observation) -> Scene:
        time.sleep(self._delay_s)
        return self._policy.look(seen)

    def __call__(self, seen: Observation) -> ActionChunk:
        return slowed(self._policy, self._delay_s, seen)


def slowed(think: Think, delay_s: float, seen: Observation) -> ActionChunk:
    time.sleep(delay_s)
    chunk = think(seen)
    return replace(chunk, infer_ms={"slowed": 1e3 * delay_s, **chunk.infer_ms}) if delay_s else chunk


def load_mind(policy: str, cfg: RunConfig) -> Think:
    """What runs in the policy's own process.

    Raises:
        CheckpointError: there is no such policy.
        ConfigError: it learned another rate, or it does not fit the settings.
    """
    import torch

    torch.set_num_threads(max(1, cores() - 1))  # one is left to the loop
    mind = load_policy(
        policy,
        device=cfg.device,
        dtype=cfg.dtype,
        engine=cfg.engine,
        rename=cfg.rename,
        without=cfg.without,
        stats=cfg.stats,
    )
    _require_rate(mind.pipeline.hz, cfg.rate)
    policy_here = Slowed(mind, cfg.slow_ms / 1e3)
    if cfg.mode == "reuse":
        return Reuse(policy_here, Background(policy_here.look), cfg.refresh_s)
    return policy_here


def _require_rate(learned: float | None, rate: float) -> None:
    if learned is not None and learned != rate:
        raise ConfigError(
            f"the policy learned {learned:g} actions a second, not {rate:g}: set --hz {learned:g}"
        )
