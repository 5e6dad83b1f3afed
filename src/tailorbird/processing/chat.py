"""Conversations: checked, and laid out as the released chat templates do, without a template engine."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tailorbird.errors import DataError
from tailorbird.processing.pieces import Piece

Role = Literal["system", "user", "assistant"]

ROLES = ("system", "user", "assistant")
KEYS = {  # of the items that a message is made of
    "text": {"type", "text"},
    "image": {"type", "image", "path"},
    "video": {"type", "video", "path", "fps"},
}
REMOTE = re.compile(r"data:|[a-z][a-z0-9+.-]*://", re.IGNORECASE)
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% elif line['type'] == 'video' %}{{ '<video>' }}"
    "{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
CHATML_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
CHATML_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + CHATML_SYSTEM + "<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class TextItem:
    text: str


@dataclass(frozen=True, eq=False)
class ImageItem:
    """source: whatever `open_picture` takes."""

    source: Any


@dataclass(frozen=True, eq=False)
class VideoItem:
    """source: a file, by its path or its bytes, or frames. fps: frames a second; a file says its own."""

    source: Any
    fps: float | None = None


Item = TextItem | ImageItem | VideoItem


@dataclass(frozen=True, kw_only=True)
class Message:
    role: Role
    items: tuple[Item, ...]


# {"role": ..., "content": ...}, as the field writes them, or messages that were read before
Conversation = Sequence[Mapping[str, Any] | Message]


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """A chat template as data.

    template: the released text of it, as chat_template.jinja holds it.
    once: a token before everything. each: a token before every turn. end: the token after every turn.
    names: how the roles are written. border, image_border, reply_border: what follows the name; if the
        first item is an image; if the model is to go on, with which the other two begin.
    system: the first message if the conversation brings none of its own.
    """

    name: str
    template: str
    once: str | None = None
    each: str | None = None
    end: str
    names: tuple[tuple[Role, str], ...]
    border: str
    image_border: str
    reply_border: str
    system: str | None = None

    @property
    def tokens(self) -> tuple[str, ...]:
        """Those which a tokenizer must have to speak this format."""
        return tuple(name for name in (self.once, self.each, self.end) if name is not None)

    def lay_out(self, messages: Sequence[Message], *, reply: bool) -> Iterator[Piece | ImageItem | VideoItem]:
        """The prompt in order; images and videos stand where their tokens belong."""
        if self.once is not None:
            yield Piece(self.once, token=True)
        if self.system is not None and messages[0].role != "system":
            messages = [Message(role="system", items=(TextItem(self.system),)), *messages]
        for message in messages:
            starts_with_image = isinstance(message.items[0], ImageItem)
            border = self.image_border if starts_with_image else self.border
            learned = message.role == "assistant"
            given = self.reply_border if learned else border  # the rest the assistant must say itself
            yield from self._head(message.role, given)
            yield Piece(border.removeprefix(given), learned=learned)
            for item in message.items:
                yield Piece(item.text, learned=learned) if isinstance(item, TextItem) else item
            yield Piece(self.end, token=True, learned=learned)
            yield Piece("\n")
        if reply:
            yield from self._head("assistant", self.reply_border)

    def _head(self, role: Role, border: str) -> Iterator[Piece]:
        if self.each is not None:
            yield Piece(self.each, token=True)
        yield Piece(dict(self.names)[role] + border)

    def render(self, messages: Sequence[Message], *, reply: bool) -> str:
        """What the template prints: one `<image>` for an image, one `<video>` for a video."""
        marks = {ImageItem: "<image>", VideoItem: "<video>"}
        parts = self.lay_out(messages, reply=reply)
        return "".join(part.text if isinstance(part, Piece) else marks[type(part)] for part in parts)


SMOLVLM = ChatFormat(
    name="smolvlm",
    template=SMOLVLM_TEMPLATE,
    once="<|im_start|>",
    end="<end_of_utterance>",
    names=(("system", "System"), ("user", "User"), ("assistant", "Assistant")),
    border=": ",
    image_border=":",
    reply_border=":",
)
CHATML = ChatFormat(
    name="chatml",
    template=CHATML_TEMPLATE,
    each="<|im_start|>",
    end="<|im_end|>",
    names=(("system", "system"), ("user", "user"), ("assistant", "assistant")),
    border="\n",
    image_border="\n",
    reply_border="\n",
    system=CHATML_SYSTEM,
)
FORMATS = (SMOLVLM, CHATML)


def read_messages(conversation: Conversation) -> tuple[Message, ...]:
    """Check a conversation.

    Raises:
        DataError: a role, type or key is unknown, or something is missing.
    """
    if isinstance(conversation, str | Mapping) or not isinstance(conversation, Iterable) or not conversation:
        raise DataError(
            f"a conversation is a list of at least one message, got {_short(conversation)}: write "
            '[{"role": "user", "content": "..."}]'
        )
    return tuple(_message(message, f"message {i}") for i, message in enumerate(conversation))


def _message(message: object, where: str) -> Message:
    if isinstance(message, Message):
        if not message.items:
            raise DataError(f"{where} is empty: leave it out, or give it a text")
        for item in message.items:
            if isinstance(item, TextItem):
                _text(item.text, where)
        return message
    if not isinstance(message, Mapping) or message.keys() != {"role", "content"}:
        raise DataError(f'{where} must have the keys "role" and "content", got {_short(message)}')
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise DataError(f"{where} is from {role!r}: it must be from one of {', '.join(ROLES)}")
    if isinstance(content, str):
        return Message(role=role, items=(_text(content, where),))
    if not isinstance(content, Sequence) or isinstance(content, bytes) or not content:
        raise DataError(
            f"{where} has the content {_short(content)}: it must be a text, or a list of at least one "
            '{"type": "text", ...}, {"type": "image", ...} or {"type": "video", ...}'
        )
    return Message(
        role=role, items=tuple(_item(item, f"{where}, item {i}") for i, item in enumerate(content))
    )


def _item(item: object, where: str) -> Item:
    kind = item.get("type") if isinstance(item, Mapping) else None
    if not isinstance(item, Mapping) or not isinstance(kind, str) or kind not in KEYS:
        raise DataError(f'{where} must have a "type" of {", ".join(KEYS)}, got {_short(item)}')
    if "url" in item:
        raise DataError(f'{where} is a "url": download it first and give its "path"')
    unknown = sorted(map(str, item.keys() - KEYS[kind]))
    if unknown:
        raise DataError(
            f"{where} has the keys {unknown} that nothing reads: {kind} takes {sorted(KEYS[kind])}"
        )
    if kind == "text":
        if not isinstance(item.get("text"), str):
            raise DataError(f'{where} has no "text", or one that is no string: got {_short(item)}')
        return _text(item["text"], where)
    given = [key for key in (kind, "path") if item.get(key) is not None]
    if len(given) != 1:
        raise DataError(
            f'{where} must hold its {kind} under one of "{kind}" and "path", got {given or "none"}'
        )
    source = item[given[0]]
    if isinstance(source, str) and REMOTE.match(source):
        raise DataError(f"{where} is at {source[:80]!r}: download it first and give its path")
    if kind == "image":
        return ImageItem(source)
    fps = item.get("fps")
    if fps is not None and (isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < 1e6):
        raise DataError(f'{where} has "fps" {fps!r}: frames a second are a positive number')
    return VideoItem(source, None if fps is None else float(fps))


def _text(text: str, where: str) -> TextItem:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} holds half a character ({text[error.start]!r} at {error.start}): decode the text whole"
        ) from None
    return TextItem(text)


def _short(thing: object) -> str:
    """Never a whole picture in an error message."""
    if isinstance(thing, Mapping):
        return f"the keys {sorted(map(str, thing))}"
    return repr(thing)[:80] if isinstance(thing, str | int | float | None) else f"a {type(thing).__name__}"
