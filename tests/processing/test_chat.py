"""Conversations: what is one, and how it is laid out."""

from pathlib import Path
from typing import Any

import pytest

from tailorbird.errors import DataError
from tailorbird.processing.chat import (
    CHATML,
    CHATML_SYSTEM,
    SMOLVLM,
    ImageItem,
    Message,
    TextItem,
    VideoItem,
    read_messages,
)

TALK = [
    {"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "What?"}]},
    {"role": "assistant", "content": "Paris"},
    {"role": "user", "content": "Sure?"},
]


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def test_the_words_of_a_conversation_are_those_of_the_released_prompt() -> None:
    assert SMOLVLM.render(read_messages(TALK), reply=True) == (
        "<|im_start|>User:<image>What?<end_of_utterance>\nAssistant: Paris<end_of_utterance>\n"
        "User: Sure?<end_of_utterance>\nAssistant:"
    )


def test_a_language_model_is_told_who_it_is_unless_the_conversation_says_so() -> None:
    messages = read_messages([{"role": "user", "content": "Hi"}, {"role": "system", "content": "late"}])
    assert CHATML.render(messages, reply=True) == (
        f"<|im_start|>system\n{CHATML_SYSTEM}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>system\nlate<|im_end|>\n<|im_start|>assistant\n"
    )
    own = read_messages([{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}])
    assert (
        CHATML.render(own, reply=False) == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    )


def test_a_string_is_one_text() -> None:
    assert read_messages(user("Hi")) == read_messages(user([{"type": "text", "text": "Hi"}]))
    assert read_messages(user("")) == (Message(role="user", items=(TextItem(""),)),)


def test_messages_that_were_read_before_are_taken_as_they_are_and_checked_all_the_same() -> None:
    messages = read_messages(TALK)
    assert read_messages(messages) == messages
    with pytest.raises(DataError, match="message 0 is empty: leave it out"):
        read_messages([Message(role="user", items=())])
    with pytest.raises(DataError, match="message 1 holds half a character"):
        read_messages([messages[0], Message(role="user", items=(TextItem("a\ud83e"),))])


def test_images_and_videos_are_named_by_their_kind_or_by_path() -> None:
    items = [
        {"type": "image", "image": b"bytes"},
        {"type": "image", "path": Path("a.png")},
        {"type": "video", "video": "a.mp4"},
        {"type": "video", "video": ["frame"], "fps": 2},
    ]
    first, second, third, last = read_messages(user(items))[0].items
    assert isinstance(first, ImageItem)
    assert isinstance(second, ImageItem)
    assert (first.source, second.source) == (b"bytes", Path("a.png"))
    assert isinstance(third, VideoItem)
    assert isinstance(last, VideoItem)
    assert (third.source, third.fps, last.source, last.fps) == ("a.mp4", None, ["frame"], 2.0)


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ([], "list of at least one message"),
        ("Hi", "list of at least one message, got 'Hi'"),
        ({"role": "user", "content": "Hi"}, "list of at least one message, got the keys"),
        (3, "list of at least one message, got 3"),
        (["Hi"], "message 0 must have the keys"),
        ([{"role": "user"}], r"\"content\", got the keys \['role'\]"),
        ([{"role": "user", "content": "a", "name": "b"}], r"got the keys \['content', 'name', 'role'\]"),
        ([*TALK, {"role": "tool", "content": "a"}], "message 3 is from 'tool': .* system, user, assistant"),
        ([{"role": ["user"], "content": "a"}], "message 0 is from"),
        (user([]), "message 0 has the content a list: it must be a text, or a list of at least one"),
        (user(None), "has the content None"),
        (user({"type": "text", "text": "a"}), "has the content the keys"),
        (user(["a"]), "message 0, item 0 must have a \"type\" of text, image, video, got 'a'"),
        (user([{"type": "audio", "audio": b""}]), "must have a \"type\" of text, image, video"),
        (user([{"type": ["text"], "text": "a"}]), "must have a \"type\" of text, image, video"),
        (user([{"text": "a"}]), "must have a \"type\""),
        (user([{"type": "text"}]), "item 0 has no \"text\""),
        (user([{"type": "text", "text": 3}]), "one that is no string"),
        (user([{"type": "text", "text": "a", "cache": 1}]), r"\['cache'\] that nothing reads"),
        (user([{"type": "text", "text": "a"}, {"type": "image"}]), "item 1 must hold its image .* none"),
        (user([{"type": "image", "image": None}]), "got none"),
        (user([{"type": "image", "image": "a", "path": "b"}]), r"got \['image', 'path'\]"),
        (user([{"type": "image", "image": "a", "fps": 1}]), r"\['fps'\] that nothing reads"),
        (user([{"type": "image", "url": "https://x.org/a.png"}]), "download it first"),
        (user([{"type": "image", "image": "HTTPS://x.org/a.png"}]), "HTTPS://x.org/a.png': download"),
        (user([{"type": "video", "path": "s3://x/a.mp4"}]), "download it first"),
        (user([{"type": "image", "image": "data:image/png;base64,aaaa"}]), "download it first"),
        (user([{"type": "video", "video": "a", "fps": 0}]), "\"fps\" 0: frames a second are a positive"),
        (user([{"type": "video", "video": "a", "fps": True}]), "\"fps\" True"),
        (user([{"type": "video", "video": "a", "fps": float("nan")}]), "\"fps\" nan"),
        (user([{"type": "video"}]), "must hold its video"),
        (user("a\ud83e"), r"message 0 holds half a character \('\\ud83e' at 1\)"),
        (user([{"type": "text", "text": "\ud83e"}]), "item 0 holds half a character"),
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_refused_with_its_place(conversation: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_messages(conversation)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
