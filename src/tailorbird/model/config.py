"""What is true of a model: sizes and conventions, checked when they are made."""

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from tailorbird.errors import ConfigError

Solver = Literal["euler", "heun", "midpoint"]
Views = Literal["joint", "mean", "max", "attention"]


def _require_sizes(cfg: Any) -> None:
    """Every whole number in a model's configuration is a size, an index or a count: none is negative."""
    for f in fields(cfg):
        value, least = getattr(cfg, f.name), 0 if f.name.endswith("_id") or f.default == 0 else 1
        if type(value) is int and value < least:
            raise ConfigError(f"{type(cfg).__name__}: {f.name}={value} must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Image tower. Defaults are SigLIP-base-patch16-512, the tower of SmolVLM2 256M and 500M."""

    image_size: int = 512
    patch_size: int = 16
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    norm_eps: float = 1e-6
    stem: tuple[int, ...] = ()  # widths of stride-2 convolutions ahead of the patches; SigLIP has none

    def __post_init__(self) -> None:
        _require_sizes(self)
        if self.image_size < self.patch_size:
            raise ConfigError(f"{self.image_size=} is smaller than one patch of {self.patch_size=}")
        if self.width % self.num_heads:
            raise ConfigError(f"{self.width=} must be a multiple of {self.num_heads=}")
        if self.patch_size % 2 ** len(self.stem):
            raise ConfigError(f"{self.patch_size=} cannot be halved by {len(self.stem)} stem convolutions")
        if self.stem and self.image_size % self.patch_size:
            raise ConfigError(f"with a stem, {self.image_size=} must be a multiple of {self.patch_size=}")

    @property
    def grid(self) -> int:
        """Patches along one side.

        SigLIP's 384 px in patches of 14 leave a rim of 6 px unseen; so does the release.
        """
        return self.image_size // self.patch_size


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Language model of the Llama kind. Defaults are the text tower of SmolVLM2-256M."""

    width: int = 576
    num_layers: int = 30
    num_heads: int = 9
    num_kv_heads: int = 3
    head_dim: int = 64
    mlp_dim: int = 1536
    vocab: int = 49280
    max_positions: int = 8192
    rope_theta: float = 100_000.0
    norm_eps: float = 1e-5
    tied: bool = False  # the output head is the embedding

    def __post_init__(self) -> None:
        _require_sizes(self)
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"{self.num_heads=} must be a multiple of {self.num_kv_heads=}")
        if self.head_dim % 2:
            raise ConfigError(f"{self.head_dim=} must be even: rotary embedding turns pairs of channels")


@dataclass(frozen=True, kw_only=True)
class VLMConfig:
    """Image tower, connector and language model.

    `shuffle` is the pixel-shuffle factor: each block of shuffle x shuffle patches becomes one token.
    """

    vision: VisionConfig = field(default_factory=VisionConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    shuffle: int = 4
    image_token_id: int = 49190

    def __post_init__(self) -> None:
        _require_sizes(self)
        if self.vision.grid % self.shuffle:
            raise ConfigError(
                f"a grid of {self.vision.grid} patches ("
                f"{self.vision.image_size=}, {self.vision.patch_size=}) does not divide by {self.shuffle=}"
            )
        if not 0 <= self.image_token_id < self.decoder.vocab:
            raise ConfigError(f"{self.image_token_id=} is outside the vocabulary of {self.decoder.vocab}")

    @property
    def tokens_per_image(self) -> int:
        return (self.vision.grid // self.shuffle) ** 2


@dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """Action expert. Defaults are smolvla_base: 0.75 of the decoder's width, half of its layers cross.

    A cross layer reads the prefix only; in any other, actions also see the actions up to themselves.
    """

    width: int = 720
    mlp_dim: int = 2048
    num_layers: int = 16
    attention: Literal["interleaved", "cross", "self"] = "interleaved"
    self_attn_every: int = 2  # when interleaved: layers 0, 2, 4, ... do not cross

    def __post_init__(self) -> None:
        _require_sizes(self)
        if self.width % 2:
            raise ConfigError(f"{self.width=} must be even: the time embedding is half sines, half cosines")

    def is_cross(self, layer: int) -> bool:
        if self.attention == "interleaved":
            return layer % self.self_attn_every != 0
        return self.attention == "cross"


@dataclass(frozen=True, kw_only=True)
class VLAConfig:
    """A VLM that reads images, words and state, and an expert that turns noise into a chunk of actions.

    image_start, image_end: ids of the tokens around every image, none in smolvla_base. An image that is not
    there takes no token, but the release that has such tokens keeps them for each of `empty_images`.
    views: joint reads the cameras one after the other, as SmolVLA does; the others pool their tokens into the
    places of one camera, so that more cameras make the scene no longer.
    max_delay: the most actions at a chunk's head that were given in training, for the others to go on from; 0
    if none ever were, as in the releases.
    """

    vlm: VLMConfig
    expert: ExpertConfig = field(default_factory=ExpertConfig)
    state_dim: int = 32
    action_dim: int = 32
    chunk: int = 50
    num_steps: int = 10  # from noise to actions
    solver: Solver = "euler"  # the others call the expert twice a step
    min_period: float = 4e-3  # of the time embedding
    max_period: float = 4.0
    image_start: tuple[int, ...] = ()
    image_end: tuple[int, ...] = ()
    empty_images: int = 0
    views: Views = "joint"
    max_delay: int = 0

    def __post_init__(self) -> None:
        _require_sizes(self)
        if self.vlm.decoder.num_layers % self.expert.num_layers:
            raise ConfigError(
                f"{self.vlm.decoder.num_layers} decoder layers are not a multiple of "
                f"{self.expert.num_layers} expert layers"
            )
        self._require_one_reading()
        if self.max_delay >= self.chunk:
            raise ConfigError(
                f"{self.max_delay=} leaves nothing to learn of a chunk of {self.chunk} actions: give fewer"
            )
        if self.solver not in get_args(Solver):
            raise ConfigError(f"no solver {self.solver!r}: there are {', '.join(get_args(Solver))}")
        if self.views not in get_args(Views):
            raise ConfigError(f"no views {self.views!r}: there are {', '.join(get_args(Views))}")
        if min(self.min_period, self.max_period) <= 0:
            raise ConfigError(f"{self.min_period=} and {self.max_period=} must be above 0")
        vocab = self.vlm.decoder.vocab
        if wrong := [i for i in (*self.image_start, *self.image_end) if not 0 <= i < vocab]:
            raise ConfigError(f"tokens {wrong} around an image are outside the vocabulary of {vocab}")

    def _require_one_reading(self) -> None:
        """lerobot shapes a layer by its own number, and runs it by that of the decoder layer it reads.

        Where they disagree, it gives self-attention the weights of a cross layer, and stops.
        """
        expert, num_read = self.expert, self.vlm.decoder.num_layers
        every, stride = expert.self_attn_every, num_read // expert.num_layers
        layer = every // math.gcd(every, stride)  # after 0 the first to read a multiple of `every`
        if expert.attention == "interleaved" and layer < min(every, expert.num_layers):
            raise ConfigError(
                f"expert layer {layer} reads decoder layer {layer * stride}, and self_attn_every={every} "
                "makes a cross layer of the one and not of the other: take as many expert as decoder layers, "
                f"attention='cross', or self_attn_every={num_read}"
            )


ModelConfig = DecoderConfig | VLMConfig | VLAConfig
