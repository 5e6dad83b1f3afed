"""A prompt between words and ids: pieces of text and tokens, each with what it is for."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tailorbird.processing.text import IMAGE, ChatTokenizer
from tailorbird.processing.tiles import Layout

Kind = Literal["text", "image", "marker", "video"]

AROUND, WHOLE = "<fake_token_around_image>", "<global-img>"


@dataclass(frozen=True)
class Piece:
    """Part of a prompt.

    token: it is the name of a token; else it is text, whatever it looks like. A name that the tokenizer does
        not have (the row and column of a tile in SmolVLM v1) is text too, as the reference has it.
    learned: it is what the assistant says. medium: number of the image or video that it belongs to, or -1.
    times: how often it stands there.
    """

    text: str
    kind: Kind = "text"
    token: bool = False
    learned: bool = False
    medium: int = -1
    times: int = 1


class Token(NamedTuple):
    id: int
    kind: Kind
    learned: bool
    medium: int


def image_block(layout: Layout, tokens_per_tile: int, medium: int) -> Iterator[Piece]:
    """The tokens of one picture: its tiles row by row, then the whole of it."""

    def marker(name: str) -> Piece:
        return Piece(name, "marker", token=True, medium=medium)

    image = Piece(IMAGE, "image", token=True, medium=medium, times=tokens_per_tile)
    newline = Piece("\n", "marker", medium=medium)
    for row in range(1, layout.rows + 1):
        for col in range(1, layout.cols + 1):
            yield from (marker(AROUND), marker(f"<row_{row}_col_{col}>"), image)
        yield newline
    if layout.rows:
        yield newline
    yield from (marker(AROUND), marker(WHOLE), image, marker(AROUND))


def encode_pieces(pieces: Iterable[Piece], tokenizer: ChatTokenizer) -> list[Token]:
    """The ids that the reference gives to the whole text.

    Texts that follow one another are encoded as one: words form across the border of template and message.
    """
    tokens: list[Token] = []
    span: list[Piece] = []
    before: str | None = None  # the token left of the span
    for piece in pieces:
        if not (piece.token and tokenizer.has(piece.text)):
            span += [piece] if piece.text else []
            continue
        tokens += _encode_span(span, tokenizer, before, piece.text)
        token = Token(tokenizer.id(piece.text), piece.kind, piece.learned, piece.medium)
        tokens += [token] * piece.times
        span, before = [], piece.text
    return tokens + _encode_span(span, tokenizer, before, None)


def _encode_span(
    span: Sequence[Piece], tokenizer: ChatTokenizer, before: str | None, after: str | None
) -> list[Token]:
    tokens, first, first_start = [], 0, 0  # the first piece that the present word can touch
    for word in tokenizer.span("".join(piece.text * piece.times for piece in span), before, after):
        while word.start >= first_start + len(span[first].text) * span[first].times and first + 1 < len(span):
            first_start += len(span[first].text) * span[first].times
            first += 1
        touched, end = [span[first]], first_start + len(span[first].text) * span[first].times
        for piece in span[first + 1 :]:
            if end >= word.end:
                break
            touched.append(piece)
            end += len(piece.text) * piece.times
        tokens.append(
            Token(
                word.id,
                touched[0].kind,
                any(piece.learned for piece in touched),
                max(piece.medium for piece in touched),
            )
        )
    return tokens
