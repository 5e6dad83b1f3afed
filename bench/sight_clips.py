"""Clips and what can be asked about them: something moves, colours take turns, a lamp flashes."""

from collections.abc import Sequence
from itertools import combinations, pairwise

from PIL import Image, ImageDraw

from sight_pen import SIDE, Asked, Pen, Shown
from sight_pictures import ARROWS, KINDS, draw_shape

SECONDS, FPS = 6, 2
FAR = 22  # px from the middle to where the way begins and ends
LANES = range(-20, 21, 5)  # px from the middle, across the way
MOST_FLASHES = 3
FLASHES = {  # by their number, the seconds when the lamp may be on
    number: [on for on in combinations(range(SECONDS), number) if all(b - a > 1 for a, b in pairwise(on))]
    for number in range(1, MOST_FLASHES + 1)
}
OFF = (190, 190, 190)  # a lamp
ORDER = ("first", "second", "last")


def clips(pen: Pen) -> Shown:
    return pen.random.choice((_moving, _in_turn, _flashing))(pen)


def _moving(pen: Pen) -> Shown:
    choice = pen.random.choice
    kind, way, (colour,), lane = pen.invent(
        lambda: (choice(KINDS), choice(list(ARROWS)), pen.colours(1), choice(LANES))
    )
    places = []
    for i in range(SECONDS * FPS):
        gone = (2 * i / (SECONDS * FPS - 1) - 1) * FAR
        places.append(tuple(round(SIDE / 2 + (gone * d if d else lane)) for d in ARROWS[way]))
    asked = [
        Asked("way", "Which way does it move?", way),
        Asked("thing", "What is it that moves?", kind),
        Asked("paint", "What colour is it?", colour),
    ]
    told = pen.tell([("moves", way), ("thing", kind), ("colour", colour)])
    return Shown(_frames(pen, kind, [colour] * len(places), places), asked, told)


def _in_turn(pen: Pen) -> Shown:
    """Three colours, each for a second at least."""
    colours, (a, b) = pen.invent(
        lambda: (pen.colours(len(ORDER)), tuple(sorted(pen.random.sample(range(1, SECONDS), 2))))
    )
    shown = [colours[(second >= a) + (second >= b)] for second in range(SECONDS) for _ in range(FPS)]
    asked = [Asked("turn", f"Which colour comes {n}?", c) for n, c in zip(ORDER, colours, strict=True)]
    frames = _frames(pen, pen.random.choice(KINDS), shown, [_somewhere(pen)] * len(shown))
    return Shown(frames, asked, [_framewise(shown), *pen.tell(list(zip(ORDER, colours, strict=True)))])


def _flashing(pen: Pen) -> Shown:
    """A lamp is on for a second at a time."""
    number = pen.random.randint(1, MOST_FLASHES)
    (colour,), on = pen.invent(lambda: (pen.colours(1), pen.random.choice(FLASHES[number])))
    shown = [colour if second in on else None for second in range(SECONDS) for _ in range(FPS)]
    flashes = Asked("flashes", "How often does the lamp flash?", str(number))
    lamp = Asked("lamp", "What colour is the lamp?", colour)
    frames = _frames(pen, "circle", shown, [_somewhere(pen)] * len(shown))
    told = [_framewise(shown), *pen.tell([("lamp", colour), ("flashes", str(number))])]
    return Shown(frames, [flashes, lamp], told)


def _framewise(shown: Sequence[str | None]) -> Asked:
    return Asked("all", "What colour is every frame?", ", ".join(one or "off" for one in shown[::FPS]))


def _somewhere(pen: Pen) -> tuple[int, ...]:
    return tuple(pen.random.randint(20, SIDE - 20) for _ in range(2))


def _frames(
    pen: Pen, kind: str, colours: Sequence[str | None], places: Sequence[tuple[int, ...]]
) -> list[Image.Image]:
    """One shape in every frame; without a colour it is a lamp that is off."""
    paper, _ = pen.paper()
    shades = {colour: OFF if colour is None else pen.shade(colour) for colour in dict.fromkeys(colours)}
    half, frames = pen.random.randint(11, 13), []
    for colour, (x, y) in zip(colours, places, strict=True):
        frames.append(paper.copy())
        draw_shape(ImageDraw.Draw(frames[-1]), kind, shades[colour], (x, y, half))
    return frames
