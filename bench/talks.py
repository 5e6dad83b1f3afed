"""Conversations about pictures to measure training with, as unlike in length as those of real mixtures."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

WORDS = (Path(__file__).parents[1] / "LICENSE").read_text().split()
KINDS = (  # share of the conversations; turns; words of a question, and of an answer
    (0.4, (1, 1), (6, 14), (1, 3)),  # as of questions with short answers
    (0.3, (3, 8), (6, 12), (2, 12)),  # several about a picture, as in The Cauldron
    (0.2, (1, 1), (5, 10), (50, 140)),  # descriptions
    (0.1, (1, 1), (10, 40), (250, 480)),  # documents, reasons
)
LONG_PX, SHORT_PX = 512, (320, 512)
FILE = "talks.jsonl"


def write_talks(folder: Path, num: int, seed: int = 0) -> Path:
    """Write so many, each with a JPEG of 512 px, in the form that transformers and we read."""
    draw = random.Random(seed)
    (folder / "pictures").mkdir(parents=True)
    lines = []
    for i in range(num):
        name = f"pictures/{i}.jpg"
        paint(draw).save(folder / name, quality=88)
        lines.append(json.dumps({"messages": converse(draw, name)}) + "\n")
    (folder / FILE).write_text("".join(lines))
    return folder / FILE


def converse(draw: random.Random, picture: str) -> list[dict[str, Any]]:
    ((_, turns, asked, told),) = draw.choices(KINDS, [share for share, *_ in KINDS])
    messages: list[dict[str, Any]] = []
    for turn in range(draw.randint(*turns)):
        shown = [] if turn else [{"type": "image", "path": picture}]
        question = [*shown, {"type": "text", "text": f"{say(draw, asked)}?"}]
        messages.append({"role": "user", "content": question})
        answer = [{"type": "text", "text": f"{say(draw, told)}."}]
        messages.append({"role": "assistant", "content": answer})
    return messages


def say(draw: random.Random, num: tuple[int, int]) -> str:
    """So many words in a row, of a text that people wrote."""
    length = draw.randint(*num)
    start = draw.randrange(len(WORDS) - length)
    return " ".join(WORDS[start : start + length])


def paint(draw: random.Random) -> Image.Image:
    """Soft colours, sharp shapes and grain: about as many bytes as a photo."""
    sides = [LONG_PX, draw.randint(*SHORT_PX)]
    draw.shuffle(sides)
    width, height = sides
    chance = np.random.default_rng(draw.getrandbits(32))
    soft = Image.fromarray(chance.integers(0, 256, (6, 6, 3), np.uint8)).resize((width, height))
    pen = ImageDraw.Draw(soft)
    for _ in range(12):
        x, y, size = draw.randrange(width), draw.randrange(height), draw.randint(10, 120)
        shape = draw.choice((pen.rectangle, pen.ellipse))
        shape((x, y, x + size, y + size), fill=tuple(draw.choices(range(256), k=3)))
    grain = chance.normal(0, 9, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(soft) + grain, 0, 255).astype(np.uint8))
