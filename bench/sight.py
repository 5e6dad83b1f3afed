"""An honest visual question set: drawn, with answers that cannot be guessed from the question.

    python bench/sight.py --sheet sheet.png      seconds; of every kind two rows of training and one held out

`generate` writes it as a user would have it: JSON lines, with pictures and clips beside them. What is held
out of training is told in bench/sight_pen.py.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from sight_clips import FPS, clips
from sight_pen import SIDE, Asked, Pen, Shown, Split
from sight_pictures import charts, documents, shapes
from tailorbird.data.video import encode
from tailorbird.storage import new_file

KINDS: Mapping[str, Callable[[Pen], Shown]] = {
    "shapes": shapes,
    "charts": charts,
    "documents": documents,
    "clips": clips,
}
FILES = {"shapes": ".png", "charts": ".png", "documents": ".jpg", "clips": ".mp4"}
LETTERS = 56  # of a line under a picture of the sheet
SHEET: Sequence[Split] = ("train", "train", "held")
NUM_ASKED: Mapping[Split, int] = {"train": 3, "held": 1}  # questions about a picture, at most
TELL_EVERY = 2  # in training, all that there is to see is told of one in so many pictures, and nothing else


@dataclass(frozen=True)
class Question:
    asked: Asked
    shown: Path


def generate(out: Path, kind: str, number: int, *, split: Split, seed: int) -> Path:
    """Draw so many pictures or clips of a kind. The same seed writes the same files.

    Each is a row of out/KIND-SPLIT.jsonl, which is written last: a conversation, and under `about` what each
    of its questions is about.
    """
    folder, rows = Path(f"{kind}-{split}"), []
    (out / folder).mkdir(parents=True, exist_ok=True)
    pen = Pen(split, f"{seed} {kind}")
    for i, (shown, asked) in enumerate(invent(pen, kind, number)):
        name = folder / f"{i:06}{FILES[kind]}"
        _save(shown, out / name)
        rows.append({"messages": _conversation(asked, name), "about": [one.about for one in asked]})
    with new_file(out / f"{folder}.jsonl") as file:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out / f"{folder}.jsonl"


def invent(pen: Pen, kind: str, number: int) -> Iterator[tuple[Shown, list[Asked]]]:
    """Pictures with questions: those that were asked least.

    No answer is given much oftener than others to the same question. In training, a share of the pictures
    comes with all that there is to see instead: captions, from which a tower learns fast.
    """
    about: Counter[str] = Counter()
    given: dict[str, Counter[str]] = defaultdict(Counter)

    def lead(one: Asked) -> float:
        answers = given[one.question]
        return answers[one.answer] - answers.total() / max(len(answers), 1)

    while number:
        shown, asked = KINDS[kind](pen), list[Asked]()
        if pen.split == "train" and number % TELL_EVERY == 0:
            number -= 1
            yield shown, [pen.random.choice(shown.told)]
            continue
        left = [one for one in shown.asked if lead(one) <= 1]
        while left and len(asked) < NUM_ASKED[pen.split]:
            one = min(left, key=lambda one: (about[one.about], lead(one)))
            left.remove(one)
            asked.append(one)
            about[one.about] += 1
            given[one.question][one.answer] += 1
        if asked:
            number -= 1
            yield shown, asked


def _save(shown: Shown, path: Path) -> None:
    if path.suffix == ".mp4":
        path.write_bytes(encode([np.asarray(frame) for frame in shown.frames], FPS))
    else:
        shown.frames[0].save(path, quality=92)


def _conversation(asked: Sequence[Asked], shown: Path) -> list[dict[str, Any]]:
    kind = "video" if shown.suffix == ".mp4" else "image"
    turns: list[dict[str, Any]] = []
    for one in asked:
        seen = [] if turns else [{"type": kind, "path": str(shown)}]
        turns.append({"role": "user", "content": [*seen, {"type": "text", "text": one.question}]})
        turns.append({"role": "assistant", "content": one.answer})
    return turns


def read_questions(rows: Path) -> list[Question]:
    """All questions of a file that `generate` wrote, with what they are about."""
    questions = []
    for row in map(json.loads, rows.read_text().splitlines()):
        turns = row["messages"]
        for about, user, assistant in zip(row["about"], turns[::2], turns[1::2], strict=True):
            asked = Asked(about, user["content"][-1]["text"], assistant["content"])
            questions.append(Question(asked, rows.parent / turns[0]["content"][0]["path"]))
    return questions


def is_right(said: str, answer: str) -> bool:
    """Equal but for case, spaces, and a full stop at the end."""
    return _plain(said) == _plain(answer)


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).removesuffix(".").rstrip()


def language_only_ceiling(asked: Sequence[Asked]) -> float:
    """What nobody surpasses who does not look: the share of the commonest answer to each question."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for one in asked:
        answers[one.question][_plain(one.answer)] += 1
    return sum(max(counts.values()) for counts in answers.values()) / len(asked)


def draw_sheet(out: Path, columns: int = 5) -> None:
    """A picture of many, with their questions and answers; of a clip, a frame of every second."""
    tall, wide = 2 * SIDE + 50, 4 * SIDE
    kinds = [(kind, split) for kind in KINDS for split in SHEET]
    sheet = Image.new("RGB", (columns * wide, len(kinds) * tall), "gray")
    draw = ImageDraw.Draw(sheet)
    for row, (kind, split) in enumerate(kinds):
        for column, (shown, asked) in enumerate(invent(Pen(split, f"{row}"), kind, columns)):
            x, y = column * wide + 4, row * tall + 4
            frames = shown.frames[::FPS]
            size = 2 * SIDE if len(frames) == 1 else SIDE - 2
            for i, frame in enumerate(frames):
                place = x + i % 3 * (size + 2), y + i // 3 * (size + 2)
                sheet.paste(frame.resize((size, size), Image.Resampling.NEAREST), place)
            text = "\n".join(fill(f"{one.question} {one.answer}", LETTERS) for one in asked)
            draw.text((x, y + 2 * SIDE + 2), text, font_size=10, spacing=1)
    sheet.save(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sheet", type=Path, required=True)
    draw_sheet(parser.parse_args().sheet)
