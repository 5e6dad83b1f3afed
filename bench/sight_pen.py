"""What the visual question set draws with, and what of it training never sees.

Held out are fonts, shades of every colour and of paper, layouts of bars and receipts, and by `Pen.allows` a
fifth of all contents (what is where, the name and the total on a receipt). NEVER_ASKED are questions that are
not asked in training, of parts that others are made of.
"""

import zlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Literal, NamedTuple, TypeVar

from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

Split = Literal["train", "held"]
RGB = tuple[int, int, int]
T = TypeVar("T", bound=Hashable)

SIDE = 72  # px of every picture
HELD_SHARE = 5  # one of so many contents is held out
NEVER_ASKED = frozenset({"What colour is the square?", "Where is the cross?"})
FONTS: Mapping[Split, Sequence[str]] = {  # files of Matplotlib; "" is Pillow's own
    "train": (
        "DejaVuSans",
        "DejaVuSans-Bold",
        "DejaVuSansMono-Bold",
        "DejaVuSerif",
        "STIXGeneralBol",
        "cmb10",
    ),
    "held": ("DejaVuSansMono", "DejaVuSerif-Bold", "cmss10", ""),
}
COLOURS: Mapping[str, Sequence[RGB]] = {  # shades; the last two of each are held out
    "red": ((220, 30, 30), (185, 15, 30), (245, 60, 55), (205, 20, 45), (235, 45, 25)),
    "green": ((30, 160, 50), (15, 120, 40), (70, 185, 60), (25, 140, 65), (55, 170, 40)),
    "blue": ((35, 70, 220), (20, 40, 170), (60, 110, 245), (25, 55, 195), (50, 85, 235)),
    "yellow": ((245, 205, 25), (225, 190, 10), (250, 225, 75), (235, 210, 40), (250, 195, 15)),
    "purple": ((150, 40, 180), (115, 25, 140), (180, 75, 205), (130, 35, 165), (165, 55, 190)),
    "black": ((0, 0, 0), (35, 35, 40), (20, 30, 20), (10, 10, 20), (40, 35, 30)),
}
PAPERS = ((255, 255, 255), (245, 245, 235), (230, 238, 245), (250, 250, 242), (235, 240, 232))  # likewise


class Asked(NamedTuple):
    """about: what one must see to answer; one for all questions of a form."""

    about: str
    question: str
    answer: str


@dataclass(frozen=True)
class Shown:
    """A picture, or the frames of a clip, and all that can be asked about it.

    asked: none of them tells another's answer. told: all there is to see, in several forms; for training.
    """

    frames: Sequence[Image.Image]
    asked: Sequence[Asked]
    told: Sequence[Asked]


class Pen:
    """Draws for one side of the split only. used: the fonts, shades, layouts and contents so far."""

    def __init__(self, split: Split, seed: str) -> None:
        self.split, self.random = split, Random(seed)
        self.used: dict[str, set[Hashable]] = defaultdict(set)

    def allows(self, content: Hashable) -> bool:
        """Whether it is of this side: the same in every process, unlike Python's own hash."""
        is_held = zlib.crc32(repr(content).encode()) % HELD_SHARE == 0
        return is_held == (self.split == "held")

    def invent(self, make: Callable[[], T]) -> T:
        """Make a content until it is of this side."""
        while not self.allows(made := make()):
            pass
        return self._note("contents", made)

    def number(self) -> int:
        """Of things in a picture. One alone is easy to learn from, and nothing to be asked about."""
        return self.random.choice((1, 2, 3, 3) if self.split == "train" else (2, 3))

    def layout(self, layouts: Mapping[Split, Sequence[T]]) -> T:
        return self._note("layouts", self.random.choice(layouts[self.split]))

    def may_ask(self, *asked: Asked) -> list[Asked]:
        """Those of this side: who is held out is asked all."""
        return [one for one in asked if self.split == "held" or one.question not in NEVER_ASKED]

    def tell(self, things: Sequence[Sequence[str]]) -> list[Asked]:
        """What there is, in reading order and in any.

        From the first a tower learns fast, since what comes next is at the next place. The second begins all
        things with the same of their parts: the others must be looked up by it, as questions want it.
        """
        order = self.random.sample(range(len(things[0])), len(things[0]))
        shuffled = self.random.sample(things, len(things))
        return [
            Asked("all", "What is there?", listed(things)),
            Asked(
                "all", "What is there, in any order?", listed([[one[i] for i in order] for one in shuffled])
            ),
        ]

    def colours(self, number: int) -> tuple[str, ...]:
        """Different ones."""
        return tuple(self.random.sample(list(COLOURS), number))

    def shade(self, colour: str) -> RGB:
        return self._shade(COLOURS[colour])

    def paper(self) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        image = Image.new("RGB", (SIDE, SIDE), self._shade(PAPERS))
        return image, ImageDraw.Draw(image)

    def font(self, height_px: int) -> ImageFont.FreeTypeFont:
        """One whose digits are so high."""
        return font_of(self._note("fonts", self.random.choice(FONTS[self.split])), height_px)

    def _shade(self, shades: Sequence[RGB]) -> RGB:
        return self._note("shades", self.random.choice(shades[-2:] if self.split == "held" else shades[:-2]))

    def _note(self, what: str, one: T) -> T:
        self.used[what].add(one)
        return one


def listed(things: Iterable[Sequence[str]]) -> str:
    return ", ".join(map(" ".join, things))


@lru_cache(maxsize=100)
def font_of(name: str, height_px: int) -> ImageFont.FreeTypeFont:
    size = height_px
    while True:
        file = Path(get_data_path(), "fonts/ttf", f"{name}.ttf")
        font = ImageFont.truetype(str(file), size) if name else ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont)  # as in every wheel of Pillow
        _, top, _, bottom = font.getbbox("8")
        if bottom - top >= height_px:
            return font
        size += 1
