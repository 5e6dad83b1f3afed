"""Which frames of a video SmolVLM2 sees, and the words around them."""

from dataclasses import dataclass

from tailorbird.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class VideoSpec:
    """Sampling and size of frames. Defaults are SmolVLM2 256M and 500M.

    fps: frames wanted per second of video. longest_edge: as in TileSpec; frames are never split.
    """

    max_frames: int = 64
    fps: float = 1.0
    longest_edge: int = 2048

    def __post_init__(self) -> None:
        if self.max_frames < 1 or self.fps <= 0 or self.longest_edge < 1:
            raise ConfigError(f"{self} describes no frames: all three must be positive")
