"""What a VLM is made of. Importable without torch, so that `--help` is quick."""

from dataclasses import dataclass
from typing import Literal

from tailorbird.errors import ConfigError

FRESH = "fresh"
MOST = {"image_size": 8192, "context": 2**28}  # 8192 px are 2^18 patches, a position embedding of 800 MB


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The components of a new VLM, and where it departs from them.

    Attributes:
        vision: folder or hub id of a SigLIP, or "fresh": SigLIP-base's shape, random, it has learned nothing.
        text: folder or hub id of a SmolLM2 or another Llama, or a .gguf file of one.
        image_size: side of a tile in px; if not the tower's own, the position embedding is interpolated.
        shuffle: each block of shuffle x shuffle patches becomes one token.
        rope_theta: base of the rotary embedding, if not the text model's own; the model must then be trained.
        context: longest prompt and answer in tokens, if not the text model's own.
        seed: of all that is drawn.
        dtype: of the weights in the file.
    """

    vision: str
    text: str
    image_size: int | None = None
    shuffle: int = 4
    rope_theta: float | None = None
    context: int | None = None
    seed: int = 0
    dtype: Literal["bfloat16", "float32"] = "bfloat16"

    def __post_init__(self) -> None:
        for name in ("image_size", "shuffle", "context"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
            if value is not None and value > MOST.get(name, value):
                raise ConfigError(f"{name}={value} must be at most {MOST[name]}")
        if self.rope_theta is not None and not 0 < self.rope_theta < float("inf"):
            raise ConfigError(f"{self.rope_theta=} must be positive: released models have 100000 to 273768")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"{self.seed=} must be in [0, 2^63)")
