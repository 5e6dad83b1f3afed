"""Turns as the field writes them, to messages with the media in their places."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tailorbird.data.sample import BadSample
from tailorbird.data.sources.media import Shown
from tailorbird.errors import DataError
from tailorbird.processing.chat import (
    ImageItem,
    Item,
    Message,
    Role,
    TextItem,
    VideoItem,
    read_messages,
)

SPEAKERS: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
}
MARK = re.compile(r"\n*(<image>|<video>)\n*")  # the line breaks beside it only set it apart
DESCRIBE_IMAGE, DESCRIBE_VIDEO = "Describe this image in detail.", "Describe this video in detail."

Parts = list[Item | str]  # a str is a mark, whose medium is still to be found


def converse(turns: object, shown: Sequence[Shown], where: str, system: object = None) -> tuple[Message, ...]:
    """A conversation whose marks `<image>` and `<video>` are replaced by what is shown, in order.

    Turns are [{"from": "human", "value": ...}] or [{"role": "user", "content": ...}], whose content may be
    a list of items too. A mark counts in what a person says; `<image>` stands for a video too where there are
    videos only. Without marks, all that is shown comes first.

    Raises:
        BadSample: turns are malformed, marks and media differ in number, or the assistant says nothing.
    """
    if not isinstance(turns, Sequence) or isinstance(turns, str | bytes):
        raise BadSample("damaged row", f"{where} has no list of turns")
    spoken = [_turn(turn, where) for turn in turns]
    if isinstance(system, str) and system.strip():
        spoken.insert(0, ("system", [TextItem(system)]))
    _place(spoken, shown, where)
    messages = tuple(
        Message(role=role, items=tuple(item for item in parts if not isinstance(item, str)))
        for role, parts in spoken
    )
    return require_answer(messages, where)


def pairs(
    asked: Sequence[tuple[object, object]], shown: Sequence[Shown], where: str, system: object = None
) -> tuple[Message, ...]:
    """Questions and answers about what is shown, which comes before the first one unless it has marks."""
    turns = [
        {"role": role, "content": text}
        for pair in asked
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return converse(turns, shown, where, system)


def require_answer(messages: tuple[Message, ...], where: str) -> tuple[Message, ...]:
    """Raises BadSample if a message is empty, or no word is the assistant's."""
    for message in messages:
        texts = [item.text for item in message.items if isinstance(item, TextItem)]
        if len(texts) == len(message.items) and not "".join(texts).strip():
            raise BadSample("empty conversation", f"{where} has an empty turn of the {message.role}")
    if not any(message.role == "assistant" for message in messages):
        raise BadSample(
            "empty conversation", f"{where} has no turn of the assistant: nothing is to be learned"
        )
    return messages


def _turn(turn: object, where: str) -> tuple[Role, Parts]:
    if not isinstance(turn, Mapping):
        raise BadSample("damaged row", f"{where} has a turn that is no object")
    speaker = turn.get("from", turn.get("role"))
    said = turn.get("value", turn.get("content"))
    if not isinstance(speaker, str) or speaker.lower() not in SPEAKERS:
        raise BadSample("damaged row", f"{where} has a turn of {str(speaker)[:40]!r}")
    role = SPEAKERS[speaker.lower()]
    if isinstance(said, str):
        return role, list(_split(said)) if role == "user" else [TextItem(said)]
    if isinstance(said, Sequence) and not isinstance(said, bytes) and said:
        return role, [part for item in said for part in _part(item, where)]
    raise BadSample("empty conversation", f"{where} has a turn of the {role} that says nothing")


def _split(text: str) -> Iterator[Item | str]:
    for i, piece in enumerate(MARK.split(text)):
        if i % 2:
            yield piece
        elif piece:
            yield TextItem(piece)


def _part(item: Any, where: str) -> Iterator[Item | str]:
    """An item of a message's content. One without its medium is a mark, as those written in texts are."""
    kind = item.get("type") if isinstance(item, Mapping) else None
    if kind in ("image", "video") and all(item.get(key) is None for key in (kind, "path")):
        yield f"<{kind}>"
        return
    given = {k: v for k, v in item.items() if v is not None} if isinstance(item, Mapping) else item
    try:
        (message,) = read_messages([{"role": "user", "content": [given]}])
    except DataError as error:
        raise BadSample("damaged row", f"{where}: {error}") from None
    for found in message.items:
        yield from _split(found.text) if isinstance(found, TextItem) else [found]


def _place(spoken: Sequence[tuple[Role, Parts]], shown: Sequence[Shown], where: str) -> None:
    marks = [part for _, parts in spoken for part in parts if isinstance(part, str)]
    if not marks and shown:
        asked = next((parts for role, parts in spoken if role == "user"), None)
        if asked is None:
            raise BadSample("empty conversation", f"{where} shows something to nobody: it has no user's turn")
        asked[:0] = shown
        return
    videos = [item for item in shown if isinstance(item, VideoItem)]
    pictures = [item for item in shown if isinstance(item, ImageItem)]
    wanted: dict[str, Iterator[Shown]] = {"<image>": iter(pictures or videos), "<video>": iter(videos)}
    if videos and not pictures:
        wanted["<video>"] = wanted["<image>"]
    if len(marks) != len(shown):
        raise BadSample("media count", f"{where} has {len(marks)} marks for {len(shown)} pictures and videos")
    for _, parts in spoken:
        for i, part in enumerate(parts):
            if isinstance(part, str):
                medium = next(wanted[part], None)
                if medium is None:
                    raise BadSample("media count", f"{where} has more {part} than it shows")
                parts[i] = medium
