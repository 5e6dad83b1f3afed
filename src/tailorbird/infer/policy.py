"""A policy: the model, its pipeline, and the noise that each chunk starts from."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from tailorbird.checkpoint.policy import read_policy
from tailorbird.errors import DataError
from tailorbird.model.vla import VLA
from tailorbird.processing.pipeline import Pipeline
from tailorbird.wire import ActionChunk, Observation


class Policy:
    """Observation to chunk, in physical units. Callable, so it fits wherever a function does.

    The noise of a chunk depends on the seed of `reset` and on how many chunks came since: the same episode
    gives the same actions.
    """

    def __init__(self, model: VLA, pipeline: Pipeline) -> None:
        self.model, self.pipeline = model.eval().requires_grad_(False), pipeline
        self._generator = torch.Generator()
        self.reset()

    def reset(self, seed: int = 0) -> None:
        """Begin an episode."""
        self._generator.manual_seed(seed)

    def act(self, seen: Observation) -> ActionChunk:
        return self.act_batch([seen])[0]

    __call__ = act

    @torch.inference_mode()
    def act_batch(self, seen: Sequence[Observation]) -> list[ActionChunk]:
        """One chunk for each of several robots.

        Raises:
            DataError: an observation does not fit the policy, or an action is not finite.
        """
        began = time.perf_counter()
        inputs = self.pipeline.read(seen)
        read = time.perf_counter()
        prefix = self.model.encode(inputs)
        encoded = time.perf_counter()
        cfg = self.model.cfg
        noise = torch.randn(len(seen), cfg.chunk, cfg.action_dim, generator=self._generator)
        actions = self.pipeline.write(self.model.sample(prefix, noise))  # (B, L, A)
        done = time.perf_counter()
        if not torch.isfinite(torch.from_numpy(actions)).all():
            raise DataError(
                "the policy's actions are not finite: its weights are damaged, or the state is far off"
            )
        cost = {"prepare": read - began, "encode": encoded - read, "denoise": done - encoded}
        milliseconds = {stage: 1e3 * seconds for stage, seconds in cost.items()}
        return [
            ActionChunk(actions=chunk, time_s=one.time_s, infer_ms=milliseconds)
            for chunk, one in zip(actions, seen, strict=True)
        ]


def load_policy(path: str | Path) -> Policy:
    """Load a policy from its folder.

    Raises:
        CheckpointError: the folder holds no policy, or a damaged one.
    """
    return Policy(*read_policy(Path(path)))
