"""From conversations to the batch that a vision-language model reads, equal to the released processor."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from tailorbird.errors import DataError
from tailorbird.processing.chat import ChatFormat, Conversation, Film, Picture, read_messages
from tailorbird.processing.picture import open_picture
from tailorbird.processing.pieces import AROUND, Kind, Piece, Token, encode_pieces, image_block
from tailorbird.processing.text import IMAGE, ChatTokenizer
from tailorbird.processing.tiles import LARGEST_PX, Plan, TileSpec
from tailorbird.processing.video import OUTRO, Clip, VideoSpec, intro, read_frames, read_video, stamp
from tailorbird.types import Prompts

ONE_TILE = Plan(resized=(1, 1), grid=(1, 1), rows=0, cols=0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Medium:
    """A picture, or the frames of a film, before they are cut into tiles."""

    frames: Tensor  # (n, H, W, 3) uint8
    spec: TileSpec

    @property
    def num_tiles(self) -> int:
        return len(self.frames) * self.spec.plan(*self.frames.shape[1:3]).num_tiles


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One conversation as tokens. cut: how many were dropped at the end."""

    tokens: Sequence[Token]
    media: Sequence[Medium]
    cut: int = 0

    @property
    def counts(self) -> dict[Kind, int]:
        """Tokens by what they are for."""
        found = Counter(token.kind for token in self.tokens)
        return {kind: found[kind] for kind in ("text", "image", "marker", "film")}


@dataclass(frozen=True, kw_only=True)
class Processor:
    """Everything that a VLM does besides the network. It travels inside the checkpoint.

    tokens_per_tile: 0 for a language model without eyes. fast: tiles by tensor operations, at most 2 of 255
    levels from the released pixels; else those.
    """

    tokenizer: ChatTokenizer
    chat: ChatFormat
    tokens_per_tile: int
    tiles: TileSpec = field(default_factory=TileSpec)
    video: VideoSpec = field(default_factory=VideoSpec)
    fast: bool = False

    def __post_init__(self) -> None:
        for name in (*self.chat.tokens, *((IMAGE, AROUND) if self.tokens_per_tile else ())):
            self.tokenizer.id(name)  # an error names what is missing

    @property
    def end_id(self) -> int:
        """The token that ends a turn: where a reply stops."""
        return self.tokenizer.id(self.chat.end)

    @property
    def pad_id(self) -> int:
        names = [name for name in ("<|im_end|>", "<|endoftext|>") if self.tokenizer.has(name)]
        return self.tokenizer.id(names[0]) if names else 0

    def encode(
        self,
        conversations: Sequence[Conversation],
        *,
        reply: bool = True,
        max_tokens: int | None = None,
        side: Literal["left", "right"] = "left",
    ) -> Prompts:
        """Conversations to model inputs.

        Args:
            reply: end with the beginning of an assistant turn, for the model to go on.
            max_tokens: see `row`, which also says how much was cut; `collate` makes the batch of such rows.
            side: where shorter rows are padded.
        """
        rows = [self.row(one, reply=reply, max_tokens=max_tokens) for one in conversations]
        return self.collate(rows, side=side)

    def row(self, conversation: Conversation, *, reply: bool = True, max_tokens: int | None = None) -> Row:
        """One conversation to tokens; its pictures are opened but not yet cut.

        A conversation of more than max_tokens is cut at its end if it is to learn from (no reply), and never
        within a picture or film: what does not fit is dropped whole. `Row.cut` says how much.

        Raises:
            DataError: the conversation is malformed, a picture cannot be read, or a prompt is too long.
        """
        pieces, media = self.expand(conversation, reply=reply)
        tokens = encode_pieces(pieces, self.tokenizer)
        row = Row(tokens=tokens, media=media)
        if max_tokens is None or len(tokens) <= max_tokens:
            return row
        if reply:
            raise DataError(
                f"the prompt has {len(tokens)} tokens, {row.counts['image']} of them for images, and "
                f"{max_tokens} are allowed: switch splitting off, choose a smaller longest_edge, sample "
                "fewer frames of videos, or shorten the text"
            )
        kept = max_tokens
        while kept and tokens[kept - 1].medium >= 0 and tokens[kept - 1].medium == tokens[kept].medium:
            kept -= 1
        num_media = 1 + max((token.medium for token in tokens[:kept]), default=-1)
        return Row(tokens=tokens[:kept], media=media[:num_media], cut=len(tokens) - kept)

    def collate(self, rows: Sequence[Row], *, side: Literal["left", "right"] = "left") -> Prompts:
        """Rows to one batch: words padded to the longest, tiles one after the other."""
        if not rows:
            raise DataError("a batch needs at least one conversation, got none")
        longest = max(len(row.tokens) for row in rows)
        ids = torch.full((len(rows), longest), self.pad_id)
        valid = torch.zeros(len(rows), longest, dtype=torch.bool)
        learned = torch.zeros(len(rows), longest, dtype=torch.bool)
        for i, row in enumerate(rows):
            length = len(row.tokens)
            here = slice(longest - length, None) if side == "left" else slice(length)
            ids[i, here] = torch.tensor([token.id for token in row.tokens], dtype=torch.int64)
            learned[i, here] = torch.tensor([token.learned for token in row.tokens], dtype=torch.bool)
            valid[i, here] = True
        media = [medium for row in rows for medium in row.media]
        return Prompts(
            ids=ids,
            valid=valid,
            learned=learned,
            pixels=self._cut(media) if media else None,
            tiles=tuple(sum(medium.num_tiles for medium in row.media) for row in rows),
        )

    def text(self, conversation: Conversation, *, reply: bool = True) -> str:
        """The whole prompt with every marker, as the reference hands it to its tokenizer."""
        pieces, _ = self.expand(conversation, reply=reply)
        return "".join(piece.text * piece.times for piece in pieces)

    def expand(self, conversation: Conversation, *, reply: bool) -> tuple[list[Piece], list[Medium]]:
        """The prompt in pieces, with a block of tokens for each picture and film, and these opened."""
        pieces: list[Piece] = []
        media: list[Medium] = []
        for part in self.chat.lay_out(read_messages(conversation), reply=reply):
            if isinstance(part, Piece):
                pieces.append(part)
                continue
            if not self.tokens_per_tile:
                raise DataError(
                    "the conversation shows a picture or video to a language model, which sees none: load a "
                    "vision-language model, or give text only"
                )
            if isinstance(part, Picture):
                medium = Medium(frames=open_picture(part.source)[None], spec=self.tiles)
                plan = self.tiles.plan(*medium.frames.shape[1:3])
                pieces += image_block(plan, self.tokens_per_tile, len(media))
            else:
                clip = self._read(part)
                medium = Medium(frames=clip.frames, spec=self._film_spec)
                pieces += self._film_block(clip, len(media))
            media.append(medium)
        return pieces, media

    @property
    def _film_spec(self) -> TileSpec:
        edge = min(self.video.longest_edge, LARGEST_PX)
        return replace(self.tiles, longest_edge=edge, split=False)

    def _read(self, film: Film) -> Clip:
        if isinstance(film.source, str | Path):
            if film.fps is not None:
                raise DataError(f'{film.source} says its own frames per second: leave "fps" out')
            return read_video(film.source, self.video)
        if film.fps is None:
            raise DataError('a video of frames needs "fps", how many of them are a second')
        return read_frames(film.source, film.fps, self.video)

    def _film_block(self, clip: Clip, medium: int) -> Iterator[Piece]:
        yield Piece(intro(len(clip.frames), clip.duration_s), "film", medium=medium)
        for time_s in clip.times_s:
            yield Piece(stamp(time_s), "film", medium=medium)
            yield from image_block(ONE_TILE, self.tokens_per_tile, medium)
        yield Piece(OUTRO, "film", medium=medium)

    def _cut(self, media: Sequence[Medium]) -> Tensor:
        """All tiles in order, (num_tiles, 3, tile, tile)."""
        parts: list[Tensor] = []
        if self.fast:
            for (spec, _), alike in groupby(media, lambda one: (one.spec, one.frames.shape[1:])):
                parts.append(spec.fast(torch.cat([one.frames for one in alike])).flatten(0, 1))
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        frames = [(one.spec, frame) for one in media for frame in one.frames]
        with ThreadPoolExecutor(
            torch.get_num_threads()
        ) as pool:  # Pillow resizes without the interpreter's lock
            return torch.cat(list(pool.map(lambda one: one[0].exact(one[1]), frames)))


def padded(prompts: Prompts) -> tuple[Tensor, Tensor]:
    """The tiles as the reference lays them out.

    Returns:
        pixel_values (B, N, 3, tile, tile) and pixel_attention_mask (B, N, tile, tile) int64, N the most tiles
        of a row; both are zero where a row has fewer.
    """
    if prompts.pixels is None:
        raise DataError("these prompts have no pictures: there is nothing to lay out")
    shape = (len(prompts.tiles), max(prompts.tiles))
    values = prompts.pixels.new_zeros(*shape, *prompts.pixels.shape[1:])
    mask = torch.zeros(*shape, *prompts.pixels.shape[2:], dtype=torch.int64, device=prompts.pixels.device)
    for i, part in enumerate(prompts.pixels.split(list(prompts.tiles))):
        values[i, : len(part)], mask[i, : len(part)] = part, 1
    return values, mask
