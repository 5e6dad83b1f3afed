"""Pictures and what can be asked about them: shapes, charts, documents."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

from sight_pen import COLOURS, RGB, SIDE, Asked, Pen, Shown, Split

KINDS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}
CELL, HALF = 36, 14  # px: the place of a shape, and half a shape
ROWS, COLUMNS = ("top", "bottom"), ("left", "right")
CELLS = tuple((row, column) for row in range(len(ROWS)) for column in range(len(COLUMNS)))
COUNTS = ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1))  # of two kinds of shapes
Scene = tuple[tuple[tuple[int, int], str, str], ...]  # cell, kind, colour
TOP = 5  # the highest value of a chart
LEFT, FLOOR, UNIT = 8, 68, 12  # px: where its axes are, and how high a value of 1 is
BARS: Mapping[Split, Sequence[tuple[int, int, bool]]] = {  # width and gap in px, with an outline
    "train": ((12, 8, False), (14, 6, True), (10, 10, False), (15, 5, False)),
    "held": ((13, 7, False), (11, 9, True)),
}
NAMES = ("ANN", "BOB", "EVA", "JIM", "LEO", "MAX", "SUE", "TOM")
LETTERS, WORDS = "AEHKRT", ("STOP", "EXIT", "OPEN", "SALE", "TAXI", "BANK")
LINES: Mapping[Split, Sequence[str]] = {  # of a receipt: two of name, code and total
    "train": ("nc", "tn", "ct", "nt"),
    "held": ("cn", "tc"),
}
ARROWS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


def shapes(pen: Pen) -> Shown:
    return _different(pen) if pen.random.random() < 0.7 else _several(pen)


def documents(pen: Pen) -> Shown:
    return _receipt(pen) if pen.random.random() < 0.7 else _sign(pen)


def _different(pen: Pen) -> Shown:
    """Shapes of different kinds and colours."""
    num, sample = pen.number(), pen.random.sample
    scene = pen.invent(lambda: _arranged(pen, sample(list(KINDS), num), pen.colours(num)))
    if num > 1 and pen.random.random() < 0.35:
        pairs = [(a, b, "yes" if a == b else "no") for a in range(num) for b in range(num)]
        asked = pen.may_ask(
            *(
                Asked("presence", f"Is there a {scene[a][2]} {scene[b][1]}?", answer)
                for a, b, answer in sample(pairs, len(pairs))
            )
        )
    else:
        asked = [_about(pen, *shape) for shape in sample(scene, num)]
    return _draw_scene(pen, scene, asked)


def _about(pen: Pen, cell: tuple[int, int], kind: str, colour: str) -> Asked:
    """One question about a shape: two would answer each other."""
    asked = [
        Asked("colour", f"What colour is the {kind}?", colour),
        Asked("shape", f"What shape is {colour}?", kind),
        Asked("place", f"Where is the {kind}?", _place(cell)),
    ]
    return pen.random.choice(asked)


def _place(cell: tuple[int, int]) -> str:
    return f"{ROWS[cell[0]]} {COLUMNS[cell[1]]}"


def _several(pen: Pen) -> Shown:
    """Shapes of two kinds, some of each."""
    kinds = pen.random.sample(list(KINDS), 2)
    counts = dict(zip(kinds, pen.random.choice(COUNTS), strict=True))
    kinds = [kind for kind, num in counts.items() for _ in range(num)]
    scene = pen.invent(lambda: _arranged(pen, kinds, pen.random.choices(list(COLOURS), k=len(kinds))))
    asked = [Asked("count", f"How many {KINDS[kind]} are there?", str(num)) for kind, num in counts.items()]
    return _draw_scene(pen, scene, asked)


def _arranged(pen: Pen, kinds: Sequence[str], colours: Sequence[str]) -> Scene:
    """In the order of reading, so that one scene has one form."""
    return tuple(sorted(zip(pen.random.sample(CELLS, len(kinds)), kinds, colours, strict=True)))


def _draw_scene(pen: Pen, scene: Scene, asked: Sequence[Asked]) -> Shown:
    picture, draw = pen.paper()
    for cell, kind, colour in scene:
        y, x = (CELL * one + CELL // 2 + pen.random.randint(-2, 2) for one in cell)
        draw_shape(draw, kind, pen.shade(colour), (x, y, HALF + pen.random.randint(-2, 1)))
    told = ", ".join(f"{_place(cell)} {colour} {kind}" for cell, kind, colour in scene)
    return Shown([picture], asked, told)


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
    x = LEFT + 2 + pen.random.randint(0, gap - 1) + pen.random.randint(0, 3 - num) * (width + gap)
    for colour, value in zip(colours, values, strict=True):
        box = (x, FLOOR - UNIT * value, x + width - 1, FLOOR - 1)
        draw.rectangle(box, fill=pen.shade(colour), outline=(60, 60, 60) if outlined else None)
        x += width + gap
    of = dict(zip(colours, values, strict=True))
    kinds = [
        [
            Asked("value", f"What is the value of {colour}?", str(of[colour]))
            for colour in sample(colours, num)
        ]
    ]
    if num > 1:
        a, b = sample(colours, 2)
        compared = Asked("comparison", f"Is {a} higher than {b}?", "yes" if of[a] > of[b] else "no")
        highest = Asked("highest", "Which bar is highest?", max(of, key=of.__getitem__))
        lowest = Asked("lowest", "Which bar is lowest?", min(of, key=of.__getitem__))
        kinds += [[highest, lowest], pen.may_ask(compared)]
    told = ", ".join(f"{colour} {value}" for colour, value in of.items())
    return Shown([picture], pen.random.choice(kinds), told)


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
    random = pen.random
    name, ink = random.choice(NAMES), pen.shade(random.choice(("black", "blue", "red")))
    code = pen.invent(lambda: random.choice(LETTERS) + str(random.randint(0, 9)))
    total = str(random.randint(1, 9))
    picture, draw = pen.paper()
    font, x = pen.font(16), random.randint(4, 6)
    order, written = pen.layout(LINES), {"n": name, "c": code, "t": f"${total}"}
    places = sorted(random.sample(range(len(order)), min(len(order), pen.number())))
    for i in places:
        y = CELL // 2 + CELL * i + random.randint(-1, 1)
        draw.text((x, y), written[order[i]], fill=ink, font=font, anchor="lm")
    fields = {"n": ("name", name), "c": ("code", code), "t": ("total", total)}
    asked = [
        Asked(field, f"What is the {field}?", text) for field, text in (fields[order[i]] for i in places)
    ]
    return Shown([picture], asked, ", ".join(written[order[i]] for i in places))


def _sign(pen: Pen) -> Shown:
    random = pen.random
    (colour,), word, way = pen.invent(
        lambda: (pen.colours(1), random.choice(WORDS), random.choice(list(ARROWS)))
    )
    picture, draw = pen.paper()
    top, ink = random.randint(4, 8), (0, 0, 0) if colour == "yellow" else (255, 255, 255)
    draw.rounded_rectangle((3, top, SIDE - 4, top + 58), radius=5, fill=pen.shade(colour))
    draw.text((SIDE // 2, top + 15), word, fill=ink, font=pen.font(13), anchor="mm")
    (dx, dy), x, y = ARROWS[way], SIDE // 2 + random.randint(-4, 4), top + 43
    draw.line((x - 11 * dx, y - 11 * dy, x + 4 * dx, y + 4 * dy), fill=ink, width=5)
    wings = [(x + 2 * dx - 9 * s * dy, y + 2 * dy + 9 * s * dx) for s in (1, -1)]
    draw.polygon([(x + 12 * dx, y + 12 * dy), *wings], fill=ink)
    says = Asked("sign", "What does the sign say?", word)
    board = Asked("board", "What colour is the sign?", colour)
    arrow = Asked("arrow", "Where does the arrow point?", way)
    return Shown([picture], [says, board, arrow], f"{word}, {colour}, {way}")
