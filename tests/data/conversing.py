"""Conversations about pictures for a model with small eyes."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from tailorbird.data.sample import BadSample, Sample
from tailorbird.processing.chat import SMOLVLM, ImageItem, Item, Message, Role, TextItem
from tailorbird.processing.processor import Processor
from tailorbird.processing.text import ChatTokenizer
from tailorbird.processing.tiles import TileSpec
from tailorbird.processing.video import VideoSpec
from vocabulary import tokenizer_json

TILE, TOKENS = 12, 5


def small_processor(**options: Any) -> Processor:
    """Pictures of 24 px: 5 tiles of 12 px for a square, of 5 tokens each; at most 9 frames of videos."""
    return Processor(
        tokenizer=ChatTokenizer(tokenizer_json()),
        chat=SMOLVLM,
        tokens_per_tile=TOKENS,
        tiles=TileSpec(longest_edge=24, tile=TILE),
        video=VideoSpec(max_frames=9, fps=2.0, longest_edge=24),
        **options,
    )


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 100 + width).integers(0, 256, (height, width, 3), np.uint8)


def jpeg(height: int, width: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(height, width)).save(file, "JPEG")
    return file.getvalue()


def said(role: Role, *items: Item | str) -> Message:
    return Message(role=role, items=tuple(TextItem(one) if isinstance(one, str) else one for one in items))


def sample(*messages: Message, name: str = "s") -> Sample:
    return Sample(name=name, source="set", messages=messages)


def asked(*items: Item | str, answer: str = "a boat") -> Sample:
    return sample(said("user", *items), said("assistant", answer))


@dataclass(frozen=True)
class Talks:
    """Questions about nothing and about pictures, of many lengths; some rows cannot be used.

    bad: numbers of rows without a picture. seen: whether there are pictures at all.
    """

    name: str
    size: int
    bad: Sequence[int] = field(default=())
    seen: bool = True

    @property
    def fingerprint(self) -> str:
        return f"{self.name}-{self.size}"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, row: int) -> Sample:
        if row in self.bad:
            raise BadSample("no picture", f"{self.name}, row {row}: there is no picture")
        draw = np.random.default_rng([row, self.size])
        words = " ".join(["boat", "Paris", "row"][i] for i in draw.integers(0, 3, draw.integers(1, 25)))
        shown = [ImageItem(jpeg(9, 9)), ImageItem(jpeg(5, 20))][: draw.integers(0, 3)] if self.seen else []
        messages = (said("user", *shown, f"What is {row}?"), said("assistant", words))
        return Sample(name=f"{self.name}[{row}]", source=self.name, messages=messages)
