"""A vision-language model learns from packed conversations."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from tailorbird.checkpoint.peft import Adapter, write_adapter
from tailorbird.checkpoint.processor import processor_files
from tailorbird.checkpoint.settings import to_json
from tailorbird.checkpoint.smolvlm import vlm_rules
from tailorbird.checkpoint.vlm import write_vlm
from tailorbird.data.order import seed_of
from tailorbird.data.pack import Counts
from tailorbird.model.config import VLMConfig
from tailorbird.model.vlm import VLM
from tailorbird.processing.processor import Processor
from tailorbird.train.config import VLMTrainConfig
from tailorbird.train.lesson import Lesson, Portion
from tailorbird.train.step import foretold, neftune, token_losses
from tailorbird.types import Rows


class Feed(Protocol):
    """Where the rows of each step come from: a `data.rows.RowLoader`, or another."""

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the rows, as JSON."""

    def steps(self, start: int, stop: int) -> Iterator[Sequence[Rows]]:
        """The rows of the steps [start, stop), each step's in the parts that are computed one by one."""

    def position(self) -> Any:
        """Where it is after the step that it gave last, as JSON."""

    def restore(self, position: Any) -> None: ...

    def counts(self) -> tuple[Counts, Counts]:
        """Samples that were dropped and that were shortened so far, by source, then by reason."""


@dataclass(frozen=True, kw_only=True)
class Packed(Portion):
    """which: the source of each token that is learned, (num,), as a place in `weights`."""

    rows: Rows
    which: Tensor
    seed: int


def portion_of(rows: Rows, image_token_id: int, seed: int) -> Packed:
    """seed: of the noise on the words."""
    places = foretold(rows, image_token_id)
    sources = sorted({source for row in rows.sources for source in row})
    numbers = [torch.tensor([sources.index(one) for one in row] or [0]) for row in rows.sources]
    which = torch.stack([mine[one.clamp_min(0)] for mine, one in zip(numbers, rows.segment, strict=True)])
    learned = which[places].bincount(minlength=len(sources)).tolist()
    return Packed(
        rows=rows,
        which=which[places],
        seed=seed,
        weights=dict(zip(sources, map(float, learned), strict=True)),
        names=[name for row in rows.names for name in row],
        samples=sum(map(len, rows.names)),
        tokens=int((rows.segment >= 0).sum()),
        places=rows.segment.numel(),
    )


class VLMLesson(Lesson[VLM, Packed]):
    """The next token, where an assistant speaks.

    model: the configuration of what learns.
    processor, end_ids: they become parts of the checkpoints.
    held_out: rows that are only measured.
    base: where training starts from, hub id or folder, for those who load the low-rank updates alone.
    """

    def __init__(
        self,
        cfg: VLMTrainConfig,
        model: VLMConfig,
        feed: Feed,
        processor: Processor,
        end_ids: frozenset[int],
        held_out: Sequence[Rows],
        base: str = "",
    ) -> None:
        self.cfg, self.model, self.feed, self.processor, self.end_ids = cfg, model, feed, processor, end_ids
        self.base = base
        self.held_out = [portion_of(rows, model.image_token_id, 0) for rows in held_out]

    @property
    def settings(self) -> dict[str, Any]:
        files = json.dumps(processor_files(self.processor, self.model), sort_keys=True)
        return {
            "model": to_json(self.model),
            "processor": hashlib.sha256(files.encode()).hexdigest(),
            "data": self.feed.settings,
        }

    def steps(self, start: int, stop: int) -> Iterator[Sequence[Packed]]:
        for step, parts in enumerate(self.feed.steps(start, stop), start):
            seed = seed_of(self.cfg.seed, step)
            yield [portion_of(rows, self.model.image_token_id, seed) for rows in parts]

    def loss(self, model: VLM, portion: Packed) -> Tensor:
        noise, rows = None, portion.rows
        if self.cfg.neftune:
            cfg = self.model
            noise = neftune(rows, cfg.decoder.width, self.cfg.neftune, cfg.image_token_id, portion.seed)
        return _by_source(model, portion, noise)

    def evaluate(self, model: VLM) -> dict[str, float]:
        """Mean losses per token of the held-out rows, altogether and of each source."""
        sums: dict[str, float] = {}
        weights: dict[str, float] = {}
        with torch.no_grad():
            for portion in self.held_out:
                losses = _by_source(model, portion, None).tolist()
                for source, loss in zip(portion.weights, losses, strict=True):
                    sums[source] = sums.get(source, 0.0) + loss
                    weights[source] = weights.get(source, 0.0) + portion.weights[source]
        if not sum(weights.values()):
            return {}
        found = {"held_out_loss": sum(sums.values()) / sum(weights.values())}
        each = {f"held_out_loss/{one}": sums[one] / weights[one] for one in sums if weights[one]}
        return found | (each if len(each) > 1 else {})

    def write(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        write_vlm(folder, weights, self.model, self.processor, end_ids=self.end_ids)

    def write_adapter(self, folder: Path, adapter: Adapter) -> None:
        write_adapter(folder, adapter, vlm_rules(self.model), self.base)

    def figures(self) -> dict[str, float]:
        kinds = zip(("dropped", "shortened"), self.feed.counts(), strict=True)
        return {
            f"{kind}/{source}/{reason}": float(num)
            for kind, counts in kinds
            for source, reasons in counts.items()
            for reason, num in reasons.items()
        }

    def position(self) -> Any:
        return self.feed.position()

    def restore(self, position: Any) -> None:
        self.feed.restore(position)


def _by_source(model: VLM, portion: Packed, noise: Tensor | None) -> Tensor:
    """Sums of the losses, (sources,)."""
    device, rows = model.decoder.embed.weight.device, portion.rows
    if rows.pixels is None:  # the tower runs on nothing: several processes must compute the same parts
        side = model.cfg.vision.image_size
        rows = replace(rows, pixels=torch.empty(0, 3, side, side))
    losses = token_losses(model, rows.to(device, model.vision.dtype), noise)  # (num,)
    return losses.new_zeros(len(portion.weights)).index_add(0, portion.which.to(device), losses)
