"""Settings of loading. Importable without torch."""

from dataclasses import dataclass, field
from typing import Literal

from tailorbird.errors import ConfigError

WhenDry = Literal["repeat", "drop", "stop"]


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes of the training pictures, drawn anew for each.

    Attributes:
        shift_px: at most so far in each direction, in px of the stored frame; the edge fills the rim.
        brightness: at most so much, as a share.
        contrast: at most so much, as a share.
        stale: pictures are at most so many frames older than the state, as when a policy reuses a scene.
    """

    shift_px: int = 0
    brightness: float = 0.0
    contrast: float = 0.0
    stale: int = 0

    def __post_init__(self) -> None:
        if min(self.shift_px, self.stale) < 0 or not (0 <= self.brightness < 1 and 0 <= self.contrast < 1):
            raise ConfigError(f"not an augmentation: {self}")


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """What a batch is.

    Attributes:
        chunk: actions that follow each observation.
        batch: observations.
        seed: of the order and the augmentation.
    """

    chunk: int
    batch: int
    seed: int = 0
    augment: Augment = field(default_factory=Augment)


@dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """How conversations are shown to a VLM that learns from them.

    A conversation that is too long for a row is first shown with fewer tiles for a picture and fewer frames
    of a video, down to one each.

    Attributes:
        system: the system prompt of conversations that bring none; empty for none. One of the model's chat
            format, if it has one, stands where this is empty.
        image_intro: said before the picture that a user begins with.
        outro: said after the last picture or video, before the words that follow.
        long_side: chances of 1, 2, 3, ... tiles on the long side of pictures, drawn for each conversation.
            Empty: as the model's processor has it.
        max_frames: of all videos of a conversation together.
        too_long: what is left over at its end is cut, never within a picture or video; or all of it dropped.
    """

    system: str = ""
    image_intro: str = ""
    outro: str = ""
    long_side: tuple[float, ...] = ()
    max_frames: int = 64
    too_long: Literal["cut", "drop"] = "cut"

    def __post_init__(self) -> None:
        if self.long_side and (min(self.long_side) < 0 or abs(sum(self.long_side) - 1) > 1e-6):
            raise ConfigError(f"{self.long_side=} must be chances that sum to 1")
        if self.max_frames < 1:
            raise ConfigError(f"{self.max_frames=} must be at least 1")


# SmolVLM's vision stage, and SmolVLM2's video stage; the words of the system prompt are ours.
VISION_SHOW = ShowConfig(long_side=(0.0, 0.4, 0.3, 0.2, 0.1))
VIDEO_SHOW = ShowConfig(
    system="You see pictures and videos, and answer questions about them.",
    image_intro="Here are some images: ",
    outro="Now answer the following question: ",
)


@dataclass(frozen=True, kw_only=True)
class RowsConfig:
    """What a step of a VLM is made of, and who makes it.

    Attributes:
        tokens: at most so many in a row.
        tiles: at most so many pictures' tiles in a row.
        lanes: rows of a step, over all processes that train together.
        at_once: at most so many of them are computed together.
        look_ahead: conversations that may wait for the next row of their lane because they did not fit.
        lengths: rows are padded to the shortest of these that holds them: one for a compiled model. Empty:
            to a multiple of 64.
        workers: processes that open pictures, besides each that trains; 0 opens them in that.
        ahead: conversations that each worker prepares in advance.
        decoder: what opens videos. torchcodec: pip install 'tailorbird[torchcodec]', and it wants FFmpeg; the
            frames are the same.
        bad_share: training stops when more than this share of the conversations cannot be used ...
        bad_after: ... once so many were drawn.
    """

    tokens: int = 2048
    tiles: int = 32
    lanes: int = 8
    at_once: int = 1
    look_ahead: int = 8
    lengths: tuple[int, ...] = ()
    workers: int = 2
    ahead: int = 4
    decoder: Literal["pyav", "torchcodec"] = "pyav"
    bad_share: float = 0.05
    bad_after: int = 200

    def __post_init__(self) -> None:
        for name in ("tokens", "tiles", "lanes", "at_once", "ahead", "bad_after"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if min(self.look_ahead, self.workers) < 0 or not 0 <= self.bad_share < 1:
            raise ConfigError(f"look_ahead and workers cannot be negative, bad_share is in [0, 1): {self}")
        if self.lengths and (max(self.lengths) != self.tokens or min(self.lengths) < 1):
            raise ConfigError(f"the longest of {self.lengths=} must be {self.tokens=}")
