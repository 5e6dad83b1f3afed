"""Pictures and what can be asked about them: shapes, charts, documents."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

from sight_pen import COLOURS, RGB, SIDE, Asked, Pen, Shown, Split, listed

KINDS = ("circle", "square", "triangle", "cross")
CELL, HALF = 36, 14  # px: the place of a shape, and half a shape
ROWS, COLUMNS = ("top", "bottom"), ("left", "right")
CELLS = tuple((row, column) for row in range(len(ROWS)) for column in range(len(COLUMNS)))
Scene = tuple[tuple[tuple[int, int], str, str], ...]  # cell, kind, colour
TOP = 5  # the highest value of a chart
LEFT, FLOOR, UNIT = 8, 68, 12  # px: where its axes are, and how high a value of 1 is
BARS: Mapping[Split, Sequence[tuple[int, int, bool]]] = {  # width and gap in px, with an outline
    "train": ((12, 8, False), (14, 6, True), (10, 10, False), (15, 5, False)),
    "held": ((13, 7, False), (11, 9, True)),
}
NAMES = ("ANN", "BOB", "EVA", "JIM", "LEO", "MAX", "SUE", "TOM")
WORDS = ("STOP", "EXIT", "OPEN", "SALE", "TAXI", "BANK")
Lines = tuple[str, int, int]  # name and total from above; px from the left, and apart
LINES: Mapping[Split, Sequence[Lines]] = {
    "train": (("nt", 5, 36), ("tn", 5, 36), ("nt", 7, 32), ("tn", 7, 32)),
    "held": (("nt", 7, 36), ("tn", 5, 32)),
}
ARROWS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


def shapes(pen: Pen) -> Shown:
    return _different(pen) if pen.random.random() < 0.8 else _several(pen)


def documents(pen: Pen) -> Shown:
    return _receipt(pen) if pen.random.random() < 0.7 else _sign(pen)


def _different(pen: Pen) -> Shown:
    """Shapes of different kinds and colours."""
    num, sample = pen.number(), pen.random.sample
    scene = pen.invent(lambda: _arranged(pen, sample(KINDS, num), pen.colours(num)))
    asked = [pen.random.choice(_about(pen, *shape)) for shape in sample(scene, num)]
    return _draw_scene(pen, scene, asked)


def _about(pen: Pen, cell: tuple[int, int], kind: str, colour: str) -> list[Asked]:
    """Of which one may be asked: two would answer each other."""
    return pen.may_ask(
        Asked("colour", f"What colour is the {kind}?", colour),
        Asked("shape", f"What shape is {colour}?", kind),
        Asked("place", f"Where is the {kind}?", _place(cell)),
        Asked("thing", f"What is at the {_place(cell)}?", f"{colour} {kind}"),
    )


def _place(cell: tuple[int, int]) -> str:
    return f"{ROWS[cell[0]]} {COLUMNS[cell[1]]}"


def _several(pen: Pen) -> Shown:
    """Shapes of any kinds and colours."""
    num, choices = pen.random.randint(1, len(CELLS)), pen.random.choices
    scene = pen.invent(lambda: _arranged(pen, choices(KINDS, k=num), choices(list(COLOURS), k=num)))
    return _draw_scene(pen, scene, [Asked("count", "How many shapes are there?", str(num))])


def _arranged(pen: Pen, kinds: Sequence[str], colours: Sequence[str]) -> Scene:
    """In the order of reading, so that one scene has one form."""
    return tuple(sorted(zip(pen.random.sample(CELLS, len(kinds)), kinds, colours, strict=True)))


def _draw_scene(pen: Pen, scene: Scene, asked: Sequence[Asked]) -> Shown:
    picture, draw = pen.paper()
    for cell, kind, colour in scene:
        y, x = (CELL * one + CELL // 2 + pen.random.randint(-2, 2) for one in cell)
        draw_shape(draw, kind, pen.shade(colour), (x, y, HALF + pen.random.randint(-2, 1)))
    return Shown([picture], asked, pen.tell([(_place(cell), colour, kind) for cell, kind, colour in scene]))


def draw_shape(draw: ImageDraw.ImageDraw, kind: str, shade: RGB, place: tuple[int, int, int]) -> None:
    """place: the middle and half the side, in px."""
    x, y, half = place
    box = (x - half, y - half, x + half, y + half)
    if kind == "circle":
        draw.ellipse(box, fill=shade)
    elif kind == "square":
        draw.rectangle(box, fill=shade)
    elif kind == "triangle":
        draw.polygon([(x, y - half), (x + half, y + half), (x - half, y + half)], fill=shade)
    else:
        for line in ((x, y - half, x, y + half), (x - half, y, x + half, y)):
            draw.line(line, fill=shade, width=half // 2 + 2)


def charts(pen: Pen) -> Shown:
    """Bars of different colours and heights."""
    num, sample = pen.number(), pen.random.sample
    colours, values = pen.invent(lambda: (pen.colours(num), tuple(sample(range(1, TOP + 1), num))))
    picture, draw = _axes(pen)
    width, gap, outlined = pen.layout(BARS)
    x = LEFT + 2 + pen.random.randint(0, 2)
    for colour, value in zip(colours, values, strict=True):
        box = (x, FLOOR - UNIT * value, x + width - 1, FLOOR - 1)
        draw.rectangle(box, fill=pen.shade(colour), outline=(60, 60, 60) if outlined else None)
        x += width + gap
    bars = [(colour, str(value)) for colour, value in zip(colours, values, strict=True)]
    upwards = sorted(bars, key=lambda bar: bar[1])
    asked = [Asked("value", f"What is the value of {c}?", v) for c, v in sample(bars, num)]
    told = pen.tell(bars)
    if num > 1:
        told.append(Asked("all", "What is there, from low to high?", listed(upwards)))
        if pen.random.random() < 0.4:
            highest = Asked("highest", "Which bar is highest?", upwards[-1][0])
            asked = [highest, Asked("lowest", "Which bar is lowest?", upwards[0][0])]
    return Shown([picture], asked, told)


def _axes(pen: Pen) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture, draw = pen.paper()
    font, ink = pen.font(7), (90, 90, 90)
    for value in range(1, TOP + 1):
        y = FLOOR - UNIT * value
        draw.line((LEFT, y, SIDE, y), fill=(205, 205, 205))
        draw.text((LEFT - 2, y), str(value), fill=ink, font=font, anchor="rm")
    draw.line((LEFT, FLOOR - UNIT * TOP, LEFT, FLOOR, SIDE, FLOOR), fill=ink)
    return picture, draw


def _receipt(pen: Pen) -> Shown:
    """A name and a total, or one of them."""
    choice, shake = pen.random.choice, lambda: pen.random.randint(-1, 1)
    name, total = pen.invent(lambda: (choice(NAMES), str(pen.random.randint(1, 9))))
    picture, draw = pen.paper()
    font, ink, (order, left, apart) = pen.font(16), pen.shade("black"), pen.layout(LINES)
    asked = []
    for line in (0, 1) if pen.number() > 1 else (choice((0, 1)),):
        is_name = order[line] == "n"
        place = left + shake(), SIDE // 2 + (2 * line - 1) * apart // 2 + shake()
        draw.text(place, name if is_name else f"${total}", fill=ink, font=font, anchor="lm")
        field, text = ("name", name) if is_name else ("total", total)
        asked.append(Asked(field, f"What is the {field}?", text))
    return Shown([picture], asked, pen.tell([(one.about, one.answer) for one in asked]))


def _sign(pen: Pen) -> Shown:
    """A word and an arrow in a frame."""
    random = pen.random
    (colour,), word, way = pen.invent(
        lambda: (pen.colours(1), random.choice(WORDS), random.choice(list(ARROWS)))
    )
    picture, draw = pen.paper()
    ink, x, y = pen.shade("black"), random.randint(-1, 1), random.randint(-1, 1)
    draw.rounded_rectangle(
        (x + 2, y + 2, x + SIDE - 3, y + SIDE - 3), radius=6, outline=pen.shade(colour), width=6
    )
    draw.text((x + SIDE // 2, y + 21), word, fill=ink, font=pen.font(12), anchor="mm")
    _draw_arrow(draw, ARROWS[way], (x + SIDE // 2, y + 48), ink)
    asked = [
        Asked("sign", "What does the sign say?", word),
        Asked("frame", "What colour is the frame?", colour),
        Asked("arrow", "Where does the arrow point?", way),
    ]
    return Shown([picture], asked, pen.tell([(one.about, one.answer) for one in asked]))


def _draw_arrow(draw: ImageDraw.ImageDraw, way: tuple[int, int], place: tuple[int, int], ink: RGB) -> None:
    (dx, dy), (x, y) = way, place
    draw.line((x - 12 * dx, y - 12 * dy, x + 4 * dx, y + 4 * dy), fill=ink, width=6)
    wings = [(x + 2 * dx - 10 * s * dy, y + 2 * dy + 10 * s * dx) for s in (1, -1)]
    draw.polygon([(x + 13 * dx, y + 13 * dy), *wings], fill=ink)
