"""Packed rows and a VLM so small that a whole training run takes a second."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from released import CFG, END_ID, make_model, make_processor
from tailorbird.model.vlm import VLM
from tailorbird.train.config import LearnConfig, VLMTrainConfig
from tailorbird.train.loop import Trained, train
from tailorbird.train.stages import choose
from tailorbird.train.vlm import Feed, VLMLesson
from tailorbird.types import Rows

SMALL = replace(CFG, decoder=replace(CFG.decoder, num_layers=2), vision=replace(CFG.vision, num_layers=1))
PER, LENGTH = SMALL.tokens_per_image, 52
CONFIG = VLMTrainConfig(  # no two of the periods coincide at a step that is saved
    steps=12,
    lr=2e-3,
    warmup=3,
    ema=0.9,
    threads=1,
    log_every=4,
    eval_every=6,
    save_every=5,
)


def sample(number: int, *, pictures: int = 1, words: int = 8) -> dict[str, torch.Tensor]:
    """ids, learned and pixels of one conversation: pictures among words; their second half is learned."""
    generator = torch.Generator().manual_seed(number)
    said = torch.randint(20, SMALL.decoder.vocab, (words,), generator=generator)
    image = torch.full((PER,), SMALL.image_token_id)
    ids = torch.cat(
        [part for one in range(pictures) for part in (said[one : one + 1], image)] + [said[pictures:]]
    )
    learned = torch.zeros(len(ids), dtype=torch.bool)
    learned[-(words // 2) :] = True
    learned[1 : 1 + PER] = bool(pictures)  # as a careless source might say: places of a picture
    return {
        "ids": ids,
        "learned": learned,
        "pixels": torch.rand(pictures, 3, 37, 37, generator=generator) * 2 - 1,
    }


def pack(rows: Sequence[Sequence[int]], length: int = LENGTH, **shape: int) -> Rows:
    """Samples by number, packed as they come; even numbers are of one source, odd ones of another."""
    made = [[sample(one, **shape) for one in row] for row in rows]
    ids = torch.full((len(rows), length), 2)
    segment, positions = torch.full_like(ids, -1), torch.zeros_like(ids)
    learned = torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(made):
        start = 0
        for number, one in enumerate(row):
            here = slice(start, start + len(one["ids"]))
            ids[i, here], learned[i, here], segment[i, here] = one["ids"], one["learned"], number
            positions[i, here] = torch.arange(len(one["ids"]))
            start = here.stop
    pixels = torch.cat([one["pixels"] for row in made for one in row])
    return Rows(
        ids=ids,
        positions=positions,
        segment=segment,
        learned=learned,
        pixels=pixels if len(pixels) else None,
        tiles=tuple(sum(len(one["pixels"]) for one in row) for row in made),
        names=tuple(tuple(f"sample {one}" for one in row) for row in rows),
        sources=tuple(tuple(("even", "odd")[one % 2] for one in row) for row in rows),
    )


class Counting:
    """A feed of samples in the order of their numbers; its position is the next one, and not the step."""

    def __init__(self, parts: int = 2, end: int | None = None) -> None:
        self.settings: dict[str, Any] = {"kind": "counting"}
        self.next, self.parts, self.end = 0, parts, end
        self.act: dict[int, Callable[[], object]] = {}  # before a step
        self.spoil: dict[int, Callable[[Rows], Rows]] = {}  # of a step

    def steps(self, start: int, stop: int) -> Iterator[list[Rows]]:
        for step in range(start, stop):
            self.act.get(step, lambda: None)()
            if self.end is not None and self.next >= self.end:
                return
            made = []
            for part in range(self.parts):  # the first has one sample, the second two, ...
                made.append(pack([range(self.next, self.next + part + 1)]))
                self.next += part + 1
            yield [self.spoil.get(step, lambda rows: rows)(rows) for rows in made]

    def position(self) -> Any:
        return {"next": self.next}

    def restore(self, position: Any) -> None:
        self.next = position["next"]

    def counts(self) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, int]]]:
        return {"odd": {"no picture": self.next // 10}}, {}


def new_vlm(seed: int = 0) -> VLM:
    return make_model(SMALL, seed)


def lesson_of(cfg: VLMTrainConfig, feed: Feed) -> VLMLesson:
    held_out = [pack([[1000, 1001]])]
    return VLMLesson(cfg, SMALL, feed, make_processor(SMALL), frozenset({END_ID}), held_out)


def teach_vlm(
    run: Path,
    cfg: VLMTrainConfig = CONFIG,
    learn: LearnConfig = LearnConfig(),  # noqa: B008 (frozen)
    feed: Counting | None = None,
) -> Trained:
    model = new_vlm()
    groups = choose(model, learn, 0)
    return train(cfg, lesson_of(cfg, feed or Counting()), model, groups, run)
