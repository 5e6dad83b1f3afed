"""A policy learns from demonstrations."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tailorbird.checkpoint.policy import settings_of, write_policy
from tailorbird.data.loader import Loader
from tailorbird.data.order import seed_of
from tailorbird.errors import ConfigError
from tailorbird.model.config import VLAConfig
from tailorbird.model.vla import VLA
from tailorbird.processing.pipeline import Pipeline
from tailorbird.train.config import VLATrainConfig
from tailorbird.train.lesson import Lesson, Portion
from tailorbird.train.parallel import Team
from tailorbird.train.vla_step import Drawn, draw, vla_loss
from tailorbird.types import Batch


@dataclass(frozen=True, kw_only=True)
class Demonstrated(Portion):
    drawn: Drawn


class VLALesson(Lesson[VLA, Demonstrated]):
    """Flow matching on the chunks of a loader. Its batches are functions of the step: there is no position.

    model: the configuration of what learns.
    pipeline: it becomes a part of the policy.
    measured: figures of a model, for `evaluate`.

    team: its processes share the parts of a batch.

    Raises:
        ConfigError: the model does not expect as many given actions as are to be learned from, or a batch has
            fewer parts than there are processes.
    """

    def __init__(
        self,
        cfg: VLATrainConfig,
        model: VLAConfig,
        loader: Loader,
        pipeline: Pipeline,
        measured: Callable[[VLA], dict[str, float]],
        team: Team | None = None,
    ) -> None:
        self.team = team or Team()
        if cfg.accumulate % self.team.world:
            raise ConfigError(
                f"{self.team.world} processes cannot share a batch in {cfg.accumulate} parts: make "
                "--train.accumulate a multiple of their number"
            )
        if cfg.max_delay > model.max_delay:
            raise ConfigError(f"{cfg.max_delay=} is more than the model's {model.max_delay}: set both")
        self.cfg, self.model, self.loader = cfg, model, loader
        self.pipeline, self.measured = pipeline, measured

    @property
    def settings(self) -> dict[str, Any]:
        words = hashlib.sha256(self.pipeline.tokenizer.json.encode()).hexdigest()
        return {**settings_of(self.model, self.pipeline), "tokenizer": words}

    def steps(self, start: int, stop: int) -> Iterator[Sequence[Demonstrated]]:
        for step, batch in enumerate(self.loader.stream(start, stop), start):
            yield self.portions(batch, step)[self.team.rank :: self.team.world]

    def portions(self, batch: Batch, step: int) -> list[Demonstrated]:
        """The parts of a step's batch. The noises are drawn for all of it, however many parts there are."""
        if self.cfg.past_end == "held":
            batch = replace(batch, valid=torch.ones_like(batch.valid))
        generator = torch.Generator().manual_seed(seed_of(self.cfg.seed, step))
        parts = draw(self.model, batch, self.cfg.draws, generator).split(self.cfg.accumulate)
        names, num = self.loader.names(step), len(batch.actions) // len(parts)
        return [
            Demonstrated(
                drawn=drawn,
                weights={"": float(drawn.valid.sum())},
                names=names[i * num : (i + 1) * num],
                samples=num,
            )
            for i, drawn in enumerate(parts)
        ]

    def loss(self, model: VLA, portion: Demonstrated) -> Tensor:
        return vla_loss(model, portion.drawn.to(next(model.parameters()).device))[None]  # (1,)

    def evaluate(self, model: VLA) -> dict[str, float]:
        return self.measured(model)

    def write(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        write_policy(folder, weights, self.model, self.pipeline)
