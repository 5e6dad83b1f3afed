"""The visual question set: what is asked is in the picture, and nowhere else."""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from sight import KINDS, Asked, generate, invent, is_right, language_only_ceiling, read_questions
from sight_pen import COLOURS, NEVER_ASKED, SIDE, Pen, Shown, Split
from sight_pictures import CELL, COLUMNS, ROWS, UNIT
from tailorbird.data.sources.readers import open_source
from tailorbird.processing.chat import ImageItem, TextItem, VideoItem
from tailorbird.processing.picture import open_picture
from tailorbird.processing.video import VideoSpec, read_video
from train_check import NEW, Plan, check

CEILINGS = {"shapes": 0.45, "charts": 0.4, "documents": 0.3, "clips": 0.35}


def drawn(kind: str, split: Split, number: int) -> tuple[Pen, list[tuple[Shown, list[Asked]]]]:
    pen = Pen(split, "7")
    return pen, list(invent(pen, kind, number))


def answered(kind: str, about: str) -> Iterator[tuple[Shown, dict[str, str]]]:
    """Pictures of both sides where this can be asked, with all answers by question."""
    pens = [Pen("train", "3"), Pen("held", "4")]
    made = [KINDS[kind](pen) for pen in pens for _ in range(60)]
    found = [one for one in made if any(asked.about == about for asked in one.asked)]
    assert len(found) > 10
    for one in found:
        yield one, {asked.question: asked.answer for asked in one.asked if asked.about == about}


def pixels(frame: Image.Image) -> np.ndarray:
    return np.asarray(frame).astype(int)


def painted(frame: Image.Image, colour: str) -> np.ndarray:
    """(H, W), where a shade of this colour is."""
    shades = [pixels(frame) == shade for shade in COLOURS[colour]]
    return np.any([shade.all(-1) for shade in shades], axis=0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_held_out_never_occurs_in_training(kind: str) -> None:
    (train, seen), (held, unseen) = drawn(kind, "train", 300), drawn(kind, "held", 100)
    assert {"shades", "contents"} <= train.used.keys() == held.used.keys()
    for what, used in held.used.items():
        assert used.isdisjoint(train.used[what]), what
    pictures = [{b"".join(f.tobytes() for f in shown.frames) for shown, _ in many} for many in (seen, unseen)]
    assert len(pictures[1]) > 95
    assert pictures[0].isdisjoint(pictures[1])


def test_some_questions_are_only_asked_of_what_is_held_out_in_words_that_are_known() -> None:
    made = drawn("shapes", "train", 500)[1], drawn("shapes", "held", 400)[1]
    asked, told = ({one.question for _, some in many for one in some if one.about != "all"} for many in made)
    assert told == asked | NEVER_ASKED
    assert asked.isdisjoint(NEVER_ASKED)
    words = [set(re.findall(r"\w+", " ".join(some))) for some in (asked, NEVER_ASKED)]
    assert words[1] <= words[0]


def test_the_order_in_which_a_scene_was_invented_does_not_make_it_another() -> None:
    scenes = drawn("shapes", "train", 100)[0].used["contents"]
    assert all(isinstance(scene, tuple) and list(scene) == sorted(scene) for scene in scenes)


def test_documents_and_charts_are_in_several_fonts_and_layouts() -> None:
    for kind in ("charts", "documents"):
        train, held = (drawn(kind, split, 70)[0].used for split in ("train", "held"))
        assert (len(train["fonts"]), len(held["fonts"])) == (6, 4)
        assert (len(train["layouts"]), len(held["layouts"])) == (4, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_who_does_not_look_is_seldom_right(kind: str) -> None:
    held = [one for _, asked in drawn(kind, "held", 400)[1] for one in asked]
    assert language_only_ceiling(held) < CEILINGS[kind]
    for about in {one.about for one in held}:
        answers = Counter(one.answer for one in held if one.about == about)
        assert max(answers.values()) < 1.5 * answers.total() / len(answers) + 2, answers


def test_the_ceiling_is_the_commonest_answer_of_each_question() -> None:
    answers = {"Is it?": ["yes", "Yes.", "no"], "What?": ["4"], "Who?": ["ANN", "BOB"]}
    asked = [Asked("x", question, answer) for question, all_ in answers.items() for answer in all_]
    assert language_only_ceiling(asked) == 4 / 6


def test_an_answer_is_right_whatever_its_case_and_spaces_but_not_with_other_words() -> None:
    assert is_right(" Speed  up.", "speed up")
    assert is_right("k7", "K7")
    assert not is_right("K71", "K7")
    assert not is_right("", "no")


def test_as_many_shapes_are_drawn_as_the_answers_say() -> None:
    for shown, answers in answered("shapes", "count"):
        paper = pixels(shown.frames[0])[0, 0]
        _, number = ndimage.label((pixels(shown.frames[0]) != paper).any(-1))
        assert number == sum(map(int, answers.values()))


def test_a_shape_is_where_and_of_the_colour_that_the_answers_say() -> None:
    for shown, answers in answered("shapes", "place"):
        things = next(one.answer for one in shown.told if one.question == "What is there?").split(", ")
        colour_of = {kind: colour for _, _, colour, kind in map(str.split, things)}
        for question, answer in answers.items():
            kind = question.split()[-1].strip("?")
            y, x = (int(one / CELL) for one in np.argwhere(painted(shown.frames[0], colour_of[kind])).mean(0))
            assert answer == f"{ROWS[y]} {COLUMNS[x]}"
    for shown, answers in answered("shapes", "colour"):
        for colour in answers.values():
            assert painted(shown.frames[0], colour).any()


def test_bars_are_as_high_as_the_answers_say() -> None:
    for shown, answers in answered("charts", "highest"):
        heights = {c: painted(shown.frames[0], c).any(1).sum() for c in COLOURS}
        assert [*answers.values()] == [max(heights, key=heights.__getitem__)]
    for shown, answers in answered("charts", "value"):
        for question, answer in answers.items():
            height = painted(shown.frames[0], question.split()[-1].strip("?")).any(1).sum()
            assert round((height + 1) / UNIT) == int(answer)  # an outline takes two px


def test_no_answer_about_a_picture_is_told_by_another() -> None:
    """Or a model that is asked several would learn to read, and not to look."""
    for shown, answers in answered("charts", "value"):
        assert {one.about for one in shown.asked} == {"value"}
        assert len(answers) == len(shown.asked)
    for shown, _ in answered("shapes", "colour"):
        kinds = [one.answer if one.about in ("shape", "thing") else one.question for one in shown.asked]
        assert len({kind.split()[-1].strip("?") for kind in kinds}) == len(shown.asked)


def test_clips_do_what_the_answers_say() -> None:
    for shown, answers in answered("clips", "way"):
        (shape,) = (one.answer for one in shown.asked if one.about == "thing")
        places = [np.argwhere(pixels(f).sum(-1) != pixels(f)[0, 0].sum()).mean(0) for f in shown.frames]
        (dy, dx), way = places[-1] - places[0], answers["Which way does it move?"]
        assert (dx if way in ("left", "right") else dy) * (1 if way in ("right", "down") else -1) > 40, shape
    for shown, answers in answered("clips", "flashes"):
        (colour,) = (one.answer for one in shown.asked if one.about == "lamp")
        on = [painted(frame, colour).any() for frame in shown.frames]
        assert np.count_nonzero(np.diff([0, *on, 0]) == 1) == int(answers["How often does the lamp flash?"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_are_read_as_a_users_own(kind: str, tmp_path: Path) -> None:
    file = generate(tmp_path / "a", kind, 6, split="train", seed=1)
    source, questions = open_source(file), read_questions(file)
    spoken = []
    for row in range(len(source)):
        messages = source[row].messages
        item = messages[0].items[0]
        if isinstance(item, VideoItem):
            clip = read_video(item.source, VideoSpec(max_frames=8, fps=1.0, longest_edge=SIDE))
            assert clip.frames.shape == (6, SIDE, SIDE, 3)
        else:
            assert isinstance(item, ImageItem)
            assert open_picture(item.source).shape == (SIDE, SIDE, 3)
        texts = [one.items[-1].text for one in messages if isinstance(one.items[-1], TextItem)]
        spoken += list(zip(texts[::2], texts[1::2], strict=True))
    assert [one.asked.about for one in questions].count("all") == 3  # of the six
    assert len(source) == 6 <= len(spoken) <= 3 + 3 * 3
    assert spoken == [one.asked[1:] for one in questions]
    assert all(one.shown.is_file() for one in questions)


def test_the_same_seed_writes_the_same_files_and_another_does_not(tmp_path: Path) -> None:
    def written(folder: str, seed: int) -> list[bytes]:
        for kind in KINDS:
            generate(tmp_path / folder, kind, 3, split="held", seed=seed)
        return [path.read_bytes() for path in sorted((tmp_path / folder).rglob("*.*"))]

    first = written("a", 1)
    assert len(first) == 4 * (3 + 1)
    assert written("b", 1) == first
    assert not set(written("c", 2)) & set(first)


def test_the_whole_check_runs_on_little_and_says_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plan = Plan(
        drawn=dict.fromkeys(KINDS, 12),
        held=4,
        compared=2,
        vision_steps=2,
        video_steps=2,
        blind_steps=2,
        lanes=2,
        processes=2,
    )
    found = check(plan, tmp_path)
    assert list(found["accuracy"]) == list(found["language_only_accuracy"]) == list(KINDS)
    for kind, told in found["kinds"].items():
        questions = read_questions(tmp_path / f"data/{kind}-held.jsonl")
        counts = {name: one["questions"] for name, one in told["about"].items()}
        assert told["questions"] == len(questions) == sum(counts.values()) - counts.get(NEW, 0)
        assert told["language_only_ceiling"] == language_only_ceiling([one.asked for one in questions])
    ways = found["loss_gap"]
    assert 0 < abs(ways["tensor"]["loss_difference"]) < 1e-3 < abs(ways["bypass"]["loss_difference"])
    blind = (tmp_path / "data/blind-clips-train.jsonl").read_text()
    assert "video" not in blind
    assert [one.asked for one in read_questions(tmp_path / "data/clips-train.jsonl")] == [
        Asked(about, user["content"][0]["text"], assistant["content"])
        for row in map(json.loads, blind.splitlines())
        for about, user, assistant in zip(
            row["about"], row["messages"][::2], row["messages"][1::2], strict=True
        )
    ]
