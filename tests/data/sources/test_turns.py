"""Turns as the field writes them."""

from typing import Any

import pytest

from tailorbird.data.sample import BadSample
from tailorbird.data.sources.turns import converse, pairs
from tailorbird.processing.chat import ImageItem, Message, TextItem, VideoItem

ONE, TWO, CLIP = ImageItem("1"), ImageItem("2"), VideoItem("c")


def said(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def flat(messages: tuple[Message, ...]) -> list[list[Any]]:
    return [
        [one.role, *(item.text if isinstance(item, TextItem) else item for item in one.items)]
        for one in messages
    ]


@pytest.mark.parametrize(
    ("turns", "shown", "first"),
    [
        (said("<image>\nWhat?", "A."), [ONE], [ONE, "What?"]),
        (said("What?\n<image>", "A."), [ONE], ["What?", ONE]),
        (said("Is <image> like <image>?", "A."), [ONE, TWO], ["Is ", ONE, " like ", TWO, "?"]),
        (said("<image><image>\nWhich?", "A."), [ONE, TWO], [ONE, TWO, "Which?"]),
        (said("What?", "A."), [ONE, TWO], [ONE, TWO, "What?"]),
        (said("What?", "A."), [], ["What?"]),
        (said("<video>\nWhat?", "A."), [CLIP], [CLIP, "What?"]),
        (said("<image>\nWhat?", "A."), [CLIP], [CLIP, "What?"]),
        (said("<video>: see <image>", "A."), [ONE, CLIP], [CLIP, ": see ", ONE]),
        (said("Line 1\nline 2 <image>", "A."), [ONE], ["Line 1\nline 2 ", ONE]),
    ],
)
def test_marks_are_replaced_in_order(turns: Any, shown: Any, first: Any) -> None:
    assert flat(converse(turns, shown, "x")) == [["user", *first], ["assistant", "A."]]


def test_a_mark_of_the_assistant_is_a_word_and_later_turns_may_show_too() -> None:
    turns = said("<image>\nWhat?", "I see <image> written.", "<image> And now?", "B.")
    assert flat(converse(turns, [ONE, TWO], "x")) == [
        ["user", ONE, "What?"],
        ["assistant", "I see <image> written."],
        ["user", TWO, " And now?"],
        ["assistant", "B."],
    ]


@pytest.mark.parametrize(
    ("turns", "shown", "reason"),
    [
        (said("<image> <image>", "A."), [ONE], "media count"),
        (said("<image>", "A."), [ONE, TWO], "media count"),
        (said("<image>", "A."), [], "media count"),
        (said("<video> <video>", "A."), [ONE, CLIP], "media count"),
        (said("<video>", "A."), [ONE], "media count"),
        ([], [], "empty conversation"),
        (said("What?"), [], "empty conversation"),
        (said("What?", "  "), [], "empty conversation"),
        (said("", "A."), [], "empty conversation"),
        ([{"from": "gpt", "value": "A."}], [ONE], "empty conversation"),
        ([*said("What?", "A."), {"from": "human", "value": []}], [], "empty conversation"),
        (None, [], "damaged row"),
        ("What?", [], "damaged row"),
        (["What?"], [], "damaged row"),
        ([{"from": "martian", "value": "x"}], [], "damaged row"),
        ([{"value": "x"}], [], "damaged row"),
        ([{"role": "user", "content": ["x"]}], [], "damaged row"),
        ([{"role": "user", "content": [{"type": "sound", "path": "x"}]}], [], "damaged row"),
    ],
)
def test_what_cannot_be_learned_from_is_a_bad_sample_with_a_reason(
    turns: Any, shown: Any, reason: str
) -> None:
    with pytest.raises(BadSample) as refused:
        converse(turns, shown, "set.json:7")
    assert refused.value.reason == reason
    assert "set.json:7" in str(refused.value)


def test_messages_may_hold_their_media_or_leave_places_for_them() -> None:
    content = [{"type": "image", "image": None, "text": None}, {"type": "text", "text": "What is <image>?"}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "A."}]
    assert flat(converse(turns, [ONE, TWO], "x"))[0] == ["user", ONE, "What is ", TWO, "?"]
    turns[0] = {
        "role": "user",
        "content": [{"type": "image", "path": "p"}, {"type": "text", "text": "What?"}],
    }
    (role, image, text), _ = flat(converse(turns, [], "x"))
    assert (role, image.source, text) == ("user", "p", "What?")


def test_a_system_prompt_comes_first() -> None:
    messages = pairs([("What?", "A.")], [ONE], "x", "Be short.")
    assert flat(messages) == [["system", "Be short."], ["user", ONE, "What?"], ["assistant", "A."]]
