"""From a sample to what a VLM learns from it: opened, dressed, made to fit, encoded."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tailorbird.data.config import ShowConfig
from tailorbird.data.sample import BadSample, Sample
from tailorbird.errors import ConfigError, DataError
from tailorbird.processing.chat import ImageItem, Item, Message, TextItem, VideoItem
from tailorbird.processing.picture import MAX_PIXELS, BadPicture, open_picture
from tailorbird.processing.processor import Processor, Row
from tailorbird.processing.video import Clip

MOST_UNEQUAL = 100  # sides of a picture; beyond, nothing is left of the shorter one
MOST_PIXELS = 2 * MAX_PIXELS  # of all pictures of a sample: half a GB
LONG_SIDE = 2  # tells these draws from others of the same seed


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """A sample as a VLM learns from it. fitted: what was done to make it fit, for counting."""

    draw: int
    name: str
    source: str
    ids: NDArray[np.int32]  # (n,)
    learned: NDArray[np.bool_]  # (n,) True at the words of the assistant and at the end of its turns
    levels: Tensor | None  # (num_tiles, 3, tile, tile) uint8
    fitted: tuple[str, ...] = ()

    @property
    def num_tiles(self) -> int:
        return 0 if self.levels is None else len(self.levels)


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """What is done to every sample: a function of the sample and the number of its draw.

    tokens, tiles: at most so many, those of a row. seed: of what is drawn.
    """

    processor: Processor
    cfg: ShowConfig
    tokens: int
    tiles: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.cfg.long_side and not self.processor.tiles.split:
            raise ConfigError(
                f"{self.cfg.long_side=} needs pictures in tiles, and this processor shows them whole: switch "
                "splitting on, or leave it out"
            )

    def encode(self, sample: Sample, draw: int) -> Encoded:
        """Raises BadSample: something shown cannot be used, nothing is to be learned, or it does not fit."""
        try:
            if not any(_speaks(message) for message in sample.messages):
                raise BadSample("empty conversation", "the assistant says nothing")
            messages, thinned = self._opened(sample.messages)
            row, smaller = self._fitting(dressed(messages, self.cfg), draw)
        except (BadSample, BadPicture) as error:
            raise BadSample(error.reason, f"{sample.name}: {error}") from None
        except DataError as error:
            raise BadSample("malformed conversation", f"{sample.name}: {error}") from None
        notes = {"fewer frames": thinned, "fewer tiles": smaller, "cut at the end": row.cut > 0}
        return Encoded(
            draw=draw,
            name=sample.name,
            source=sample.source,
            ids=np.array([token.id for token in row.tokens], np.int32),
            learned=np.array([token.learned for token in row.tokens], np.bool_),
            levels=self.processor.levels(row),
            fitted=tuple(note for note, is_so in notes.items() if is_so),
        )

    def _opened(self, messages: Sequence[Message]) -> tuple[list[Message], bool]:
        """All pictures and videos opened once, and whether a video shows fewer frames to fit a row."""
        num_images, num_videos = _count(messages, ImageItem), _count(messages, VideoItem)
        if num_images + num_videos > self.tiles:
            raise BadSample(
                "too many pictures", f"{num_images + num_videos} of them, and a row has {self.tiles} tiles"
            )
        allowed = max(self.cfg.max_frames // max(num_videos, 1), 1)
        frames = min(allowed, self._frames_each(messages, num_images, num_videos)) if num_videos else 0
        opened, num_pixels, thinned = list[Message](), 0, False
        for message in messages:
            items = list[Item]()
            for item in message.items:
                if isinstance(item, VideoItem):
                    clip = _read(self._shown(frames), item)
                    thinned |= len(clip.frames) == frames < allowed
                    items.append(VideoItem(clip))
                elif isinstance(item, ImageItem):
                    picture = _proportioned(open_picture(item.source))
                    num_pixels += picture[..., 0].numel()
                    if num_pixels > MOST_PIXELS:
                        raise BadSample(
                            "picture too large", f"its pictures have more than {MOST_PIXELS:,} px"
                        )
                    items.append(ImageItem(picture))
                else:
                    items.append(item)
            opened.append(replace(message, items=tuple(items)))
        return opened, thinned

    def _frames_each(self, messages: Sequence[Message], num_images: int, num_videos: int) -> int:
        """Frames of every video that leave room for the words, and for one tile of every picture."""
        told = dressed(messages, self.cfg)
        words = [replace(one, items=tuple(_words(one)) or (TextItem(""),)) for one in told]
        row = self.processor.row(words, reply=False)
        one_tile = self.processor.tokens_per_tile + 8  # and its markers
        room = self.tokens - len(row.tokens) - num_images * one_tile
        most = (self.tiles - num_images) // num_videos
        return max(min(self._shown(most).frames_within(room // num_videos), most), 1)

    def _shown(self, frames: int) -> Processor:
        return replace(self.processor, video=replace(self.processor.video, max_frames=frames))

    def _fitting(self, messages: Sequence[Message], draw: int) -> tuple[Row, bool]:
        """The row with as many tiles for each picture as fit, and whether that is fewer than wanted."""
        spec, edges = self.processor.tiles, self._long_edges(draw)
        for edge in edges if _count(messages, ImageItem) else edges[:1]:
            shown = replace(self.processor, tiles=replace(spec, longest_edge=edge))
            row = shown.row(messages, reply=False)
            if len(row.tokens) <= self.tokens and row.num_tiles <= self.tiles:
                break
        if len(row.tokens) > self.tokens:
            if self.cfg.too_long == "drop":
                raise BadSample("too long", f"{len(row.tokens)} tokens, and a row has {self.tokens}")
            row = shown.row(messages, reply=False, max_tokens=self.tokens)
        if row.num_tiles > self.tiles:
            raise BadSample("too many pictures", f"{row.num_tiles} tiles, and a row has {self.tiles}")
        if not any(token.learned for token in row.tokens[1:]):
            raise BadSample("too long", f"no answer is left of it in {self.tokens} tokens")
        return row, edge < edges[0]

    def _long_edges(self, draw: int) -> list[int]:
        """The long side of pictures in px, and what it may be instead if they do not fit."""
        spec, chances = self.processor.tiles, self.cfg.long_side
        wanted = spec.longest_edge
        if chances:
            drawn = np.random.default_rng([self.seed, LONG_SIDE, draw]).choice(len(chances), p=chances)
            wanted = (int(drawn) + 1) * spec.tile
        smaller = range((wanted - 1) // spec.tile * spec.tile, 0, -spec.tile) if spec.split else ()
        return [wanted, *smaller]


def dressed(messages: Sequence[Message], cfg: ShowConfig) -> list[Message]:
    """With a system prompt, and words before and after what is shown.

    As in SmolVLM2's training: the words before stand where the first turn of the user begins with a picture,
    those after follow the last picture or video of the conversation.
    """
    told = list(messages)
    user = next((i for i, message in enumerate(messages) if message.role == "user"), -1)
    shown = [i for i, one in enumerate(messages) if one.role == "user" and len(_words(one)) < len(one.items)]
    if cfg.outro and shown:
        items = list(messages[shown[-1]].items)
        after = max(i for i, item in enumerate(items) if not isinstance(item, TextItem)) + 1
        if after < len(items):
            items.insert(after, TextItem(cfg.outro))
            told[shown[-1]] = replace(messages[shown[-1]], items=tuple(items))
    if cfg.image_intro and user >= 0 and isinstance(messages[user].items[0], ImageItem):
        items = [TextItem(cfg.image_intro), *told[user].items]
        told[user] = replace(messages[user], items=tuple(items))
    if cfg.system and messages[0].role != "system":
        told.insert(0, Message(role="system", items=(TextItem(cfg.system),)))
    return told


def _words(message: Message) -> list[TextItem]:
    return [item for item in message.items if isinstance(item, TextItem)]


def _speaks(message: Message) -> bool:
    return message.role == "assistant" and any(item.text.strip() for item in _words(message))


def _count(messages: Iterable[Message], kind: type[ImageItem | VideoItem]) -> int:
    return sum(isinstance(item, kind) for message in messages for item in message.items)


def _read(processor: Processor, item: VideoItem) -> Clip:
    if isinstance(item.source, str | Path) and not Path(item.source).exists():
        raise BadSample("missing video", f"{item.source} does not exist: check the path of the video")
    try:
        return processor.read_clip(item)
    except DataError as error:
        raise BadSample("unreadable video", str(error)) from None


def _proportioned(picture: Tensor) -> Tensor:
    """picture: (H, W, 3)."""
    height, width = picture.shape[:2]
    if max(height, width) > MOST_UNEQUAL * min(height, width):
        raise BadSample("absurd size", f"a picture of {width} x {height} px, which nothing is seen of")
    return picture
