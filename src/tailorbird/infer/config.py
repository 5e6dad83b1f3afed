"""Settings of loading and answering. Importable without torch."""

from dataclasses import dataclass
from typing import Literal

from tailorbird.errors import ConfigError

Engine = Literal["torch", "openvino"]
PolicyEngine = Literal["torch", "graphs", "openvino"]
Precision = Literal["float32", "bfloat16", "int8", "int4"]
COLDEST = 1e-5  # below, logits divided by the temperature leave fp32


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen, and when to stop.

    Applied in this order: penalty, temperature, top-k, top-p, as the reference does.

    Attributes:
        max_tokens: tokens of the answer at most; the context of the model may end it earlier.
        temperature: 0 takes the likeliest token always.
        top_p: the likeliest tokens are kept until their probabilities sum to this.
        top_k: the k likeliest tokens are kept; 0 keeps all.
        repetition_penalty: above 1 makes every token of the prompt and of the answer less likely.
        stop: strings that end the answer; they are not part of it.
        seed: of the draws. Rows of a batch draw independently.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"{self.max_tokens=} must be at least 1")
        if not (self.temperature == 0 or COLDEST <= self.temperature < float("inf")):
            raise ConfigError(
                f"{self.temperature=} must be 0, for the likeliest token, or at least {COLDEST}"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"{self.top_p=} must be in (0, 1]; 1 keeps all tokens")
        if self.top_k < 0:
            raise ConfigError(f"{self.top_k=} cannot be negative; 0 keeps all tokens")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ConfigError(f"{self.repetition_penalty=} must be positive; 1 is no penalty")
        if isinstance(self.stop, str) or not all(self.stop):
            raise ConfigError(f"{self.stop=} must be a tuple of strings that are not empty")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"{self.seed=} must be in [0, 2^63)")


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """What to do otherwise than the model's own settings say.

    Attributes:
        split: False shows every picture whole, in one tile; True leaves it to the model's settings.
        longest_edge: side to which the long side of a picture is brought before it is cut, in px.
        upscale: False leaves pictures that are smaller than that at their size: fewer tiles, other pixels.
        fast: tiles by tensor operations, at most 2 of 255 levels from the exact pixels.
    """

    split: bool = True
    longest_edge: int | None = None
    upscale: bool = True
    fast: bool = False

    def __post_init__(self) -> None:
        if self.longest_edge is not None and self.longest_edge < 1:
            raise ConfigError(f"{self.longest_edge=} must be at least 1 px")


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Where and how a model is loaded.

    Attributes:
        device: auto, cpu, cuda, cuda:1, ...; auto is the first GPU if there is one.
        dtype: of the weights; auto leaves them as the file has them. int8 multiplies int8 by int8, int4 keeps
            weights so; both are for the engine openvino. A policy must be quantised first.
        engine: torch is exact; openvino is faster on a CPU, to the tolerance that its tests state.
        revision: branch, tag or commit on the hub.
    """

    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"] = "auto"
    engine: Engine = "torch"
    revision: str | None = None
