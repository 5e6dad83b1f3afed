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
from tailorbird.processing.chat import ChatFormat, Conversation, ImageItem, VideoItem, read_messages
from tailorbird.processing.picture import open_picture
from tailorbird.processing.pieces import AROUND, Kind, Piece, Token, encode_pieces, image_block
from tailorbird.processing.text import IMAGE, ChatTokenizer
from tailorbird.processing.tiles import LARGEST_PX, Layout, TileSpec
from tailorbird.processing.video import OUTRO, Clip, VideoSpec, intro, read_frames, read_video, stamp
from tailorbird.processing.video_file import Decoder
from tailorbird.types import Prompts

LATE_S = 6000.0  # from here on, the time of a frame takes one digit more
ONE_TILE = Layout(resized=(1, 1), grid=(1, 1), rows=0, cols=0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Medium:
    """An image, or the frames of a video, before they are cut into tiles."""

    frames: Tensor  # (n, H, W, 3) uint8
    spec: TileSpec

    @property
    def num_tiles(self) -> int:
        return len(self.frames) * self.spec.layout(*self.frames.shape[1:3]).num_tiles


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One conversation as tokens. cut: how many were dropped at the end."""

    tokens: Sequence[Token]
    media: Sequence[Medium]
    cut: int = 0

    @property
    def num_tiles(self) -> int:
        return sum(medium.num_tiles for medium in self.media)

    @property
    def counts(self) -> dict[Kind, int]:
        """Tokens by what they are for."""
        found = Counter(token.kind for token in self.tokens)
        return {kind: found[kind] for kind in ("text", "image", "marker", "video")}


@dataclass(frozen=True, kw_only=True)
class Processor:
    """Everything that a VLM does besides the network. It travels inside the checkpoint.

    tokens_per_tile: 0 for a language model without eyes. fast: tiles by tensor operations, at most 2 of 255
    levels from the released pixels; else those. decoder: what opens video files, with the same frames.
    """

    tokenizer: ChatTokenizer
    chat: ChatFormat
    tokens_per_tile: int
    tiles: TileSpec = field(default_factory=TileSpec)
    video: VideoSpec = field(default_factory=VideoSpec)
    fast: bool = False
    decoder: Decoder = "pyav"

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

        Pixels land on the CPU, unless `fast` is set and every picture is a tensor on one other device: then
        there.

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
        within an image or video: what does not fit is dropped whole. `Row.cut` says how much.

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
            tiles=tuple(row.num_tiles for row in rows),
        )

    def levels(self, row: Row) -> Tensor | None:
        """All tiles of a row in order, not yet scaled: (num_tiles, 3, tile, tile) uint8, on the CPU."""
        parts = [
            medium.spec.fast_levels(frame[None])[0] if self.fast else medium.spec.exact_levels(frame)
            for medium in row.media
            for frame in medium.frames
        ]
        return torch.cat(parts) if parts else None

    def frames_within(self, tokens: int) -> int:
        """How many frames of a video fit so many tokens, with the words around them; at least one."""
        one, two = self._video_tokens(1), self._video_tokens(2)
        num = min(max((tokens - one) // (two - one) + 1, 1), self.video.max_frames)
        while num > 1 and self._video_tokens(num) > tokens:  # the number itself is written in words
            num -= 1
        return num

    def _video_tokens(self, num_frames: int) -> int:
        clip = Clip(frames=torch.empty(num_frames, 0), times_s=(LATE_S,) * num_frames, duration_s=LATE_S)
        return len(encode_pieces(self._video_block(clip, 0), self.tokenizer))

    def text(self, conversation: Conversation, *, reply: bool = True) -> str:
        """The whole prompt with every marker, as the reference hands it to its tokenizer."""
        pieces, _ = self.expand(conversation, reply=reply)
        return "".join(piece.text * piece.times for piece in pieces)

    def expand(self, conversation: Conversation, *, reply: bool) -> tuple[list[Piece], list[Medium]]:
        """The prompt in pieces, with a block of tokens for each image and video, and these opened."""
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
            if isinstance(part, ImageItem):
                medium = Medium(frames=open_picture(part.source)[None], spec=self.tiles)
                layout = self.tiles.layout(*medium.frames.shape[1:3])
                pieces += image_block(layout, self.tokens_per_tile, len(media))
            else:
                clip = self.read_clip(part)
                medium = Medium(frames=clip.frames, spec=self._video_spec)
                pieces += self._video_block(clip, len(media))
            media.append(medium)
        return pieces, media

    @property
    def _video_spec(self) -> TileSpec:
        edge = min(self.video.longest_edge, LARGEST_PX)
        return replace(self.tiles, longest_edge=edge, split=False)

    def read_clip(self, item: VideoItem) -> Clip:
        """The frames that are seen of a video; a Clip that was read before is taken as it is."""
        if isinstance(item.source, Clip):
            return item.source
        if isinstance(item.source, str | Path | bytes):
            if item.fps is not None:
                name = "a video file" if isinstance(item.source, bytes) else item.source
                raise DataError(f'{name} says its own frames per second: leave "fps" out')
            return read_video(item.source, self.video, self.decoder)
        if item.fps is None:
            raise DataError('a video of frames needs "fps", how many of them are a second')
        return read_frames(item.source, item.fps, self.video)

    def _video_block(self, clip: Clip, medium: int) -> Iterator[Piece]:
        yield Piece(intro(len(clip.frames), clip.duration_s), "video", medium=medium)
        for time_s in clip.times_s:
            yield Piece(stamp(time_s), "video", medium=medium)
            yield from image_block(ONE_TILE, self.tokens_per_tile, medium)
        yield Piece(OUTRO, "video", medium=medium)

    def _cut(self, media: Sequence[Medium]) -> Tensor:
        """All tiles in order, (num_tiles, 3, tile, tile)."""
        if self.fast:
            home, parts = common_device(media), []
            for (spec, _, _), alike in groupby(media, lambda one: (one.spec, *place_and_size(one))):
                parts.append(spec.fast(torch.cat([one.frames for one in alike])).flatten(0, 1).to(home))
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        frames = [(one.spec, frame) for one in media for frame in one.frames]
        # Pillow resizes without the interpreter's lock
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            return torch.cat(list(pool.map(lambda one: one[0].exact(one[1]), frames)))


def place_and_size(medium: Medium) -> tuple[torch.device, torch.Size]:
    """Frames that agree in both can be one batch."""
    return medium.frames.device, medium.frames.shape[1:]


def common_device(media: Sequence[Medium]) -> torch.device:
    """Where all frames are, or the CPU if they are in several places."""
    devices = {medium.frames.device for medium in media}
    return devices.pop() if len(devices) == 1 else torch.device("cpu")
