"""What a model costs, from its configuration alone: operations, weights and cached values, stage by stage.

Operations are what torch.utils.flop_counter counts: those of matrix products, convolutions and attention, two
for a multiplication with its addition, attention whole even where it is causal. Importable without torch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tailorbird.errors import ConfigError
from tailorbird.model.config import DecoderConfig, ExpertConfig, VisionConfig, VLAConfig, VLMConfig


class Number(NamedTuple):
    """A kind of numbers: bytes of a weight, of a cached value, and the kind in which products are made."""

    weight_bytes: float
    value_bytes: int
    computed_in: str


NUMBERS = {
    "float32": Number(4, 4, "float32"),
    "bfloat16": Number(2, 2, "bfloat16"),
    "float16": Number(2, 2, "float16"),
    "int8": Number(1, 2, "int8"),
    "int4": Number(0.5, 2, "bfloat16"),  # weights only: they are widened before the product
}


@dataclass(frozen=True)
class Cost:
    """weights: parameters read, once a run. cached: keys and values of an earlier stage that are read."""

    flops: int = 0
    weights: int = 0
    cached: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.weights + other.weights, self.cached + other.cached)

    def __mul__(self, times: int) -> "Cost":
        """Of `times` runs, one after the other."""
        return Cost(self.flops * times, self.weights * times, self.cached * times)

    def num_bytes(self, dtype: str) -> float:
        """Bytes that must be moved if the whole stage is kept in `dtype`, a key of `NUMBERS`."""
        number = NUMBERS[dtype]
        return self.weights * number.weight_bytes + self.cached * number.value_bytes


@dataclass(frozen=True)
class Device:
    """flops: operations a second by the kind of numbers. bytes_s: bytes read a second. source: of both."""

    name: str
    flops: Mapping[str, float]
    bytes_s: float
    source: str


def _gpu(name: str, tera: tuple[float, float, float], gb_s: float) -> Device:
    """tera: 10^12 operations a second in fp32 without tensor cores, in 16 bits with them, and in int8."""
    fp32, half, int8 = (1e12 * one for one in tera)
    flops = {"float32": fp32, "bfloat16": half, "float16": half, "int8": int8}
    return Device(name, flops, 1e9 * gb_s, "theoretical: the vendor's figures, without sparsity")


DEVICES = {  # from NVIDIA's data sheets; where these give figures with 2:4 sparsity only, half of them
    one.name: one
    for one in (
        _gpu("H200", (67, 989.5, 1979), 4800),  # SXM, H200 Tensor Core GPU data sheet
        _gpu("H100", (67, 989.5, 1979), 3350),  # SXM, H100 Tensor Core GPU data sheet
        _gpu("A100", (19.5, 312, 624), 2039),  # SXM 80 GB, A100 data sheet
        _gpu("RTX 4090", (82.6, 165.2, 660.6), 1008),  # Ada whitepaper; 16 bits summed in fp32
        _gpu("L4", (30.3, 121, 242.5), 300),  # L4 data sheet
        _gpu("Jetson AGX Orin", (5.3, 42.5, 85), 204.8),  # 64 GB, technical brief; its GPU without the DLAs
    )
}


def named_device(name: str) -> Device:
    """One of `DEVICES`, of whatever case. Raises ConfigError for another."""
    found = [one for key, one in DEVICES.items() if key.lower() == name.lower()]
    if not found:
        raise ConfigError(f"no device {name!r}: there are {', '.join(DEVICES)}")
    return found[0]


def floor_s(stages: Iterable[Cost], device: Device, dtype: str) -> float:
    """The least time in seconds: of each stage its operations or its bytes, whichever takes longer.

    Raises:
        ConfigError: there is no figure for the device in this dtype.
    """
    if dtype not in NUMBERS or (kind := NUMBERS[dtype].computed_in) not in device.flops:
        raise ConfigError(f"no rate of {device.name} in {dtype}: there are {', '.join(device.flops)}")
    rate = device.flops[kind]
    return sum(max(one.flops / rate, one.num_bytes(dtype) / device.bytes_s) for one in stages)


def prefix_length(cfg: VLAConfig, cameras: int, words: int) -> int:
    """Positions that the expert reads: images with the tokens around them, words, state."""
    around = len(cfg.image_start) + len(cfg.image_end)
    pictures = cameras if cfg.views == "joint" else 1
    return pictures * (cfg.vlm.tokens_per_image + around) + cfg.empty_images * around + words + 1


def policy_cost(cfg: VLAConfig, *, cameras: int, words: int, batch: int = 1) -> dict[str, Cost]:
    """One observation and one call of the expert: "vision", "prefix", "state", "step", in running order.

    words: tokens of the instruction, with padding where it is computed. `chunk_cost` makes the whole of it.
    """
    decoder, expert = cfg.vlm.decoder, cfg.expert
    places = prefix_length(cfg, cameras, words)
    kv = decoder.num_kv_heads * decoder.head_dim
    prefix = _filled(decoder, batch, places - 1)
    state = _linear(batch, cfg.state_dim, decoder.width, bias=True) + _filled(decoder, batch, 1, places - 1)
    step = _ends(cfg, batch)
    for layer in range(expert.num_layers):
        if expert.is_cross(layer):
            prefix += _linear(batch * (places - 1), kv, kv) * 2
            state += _linear(batch, kv, kv) * 2
            step += _cross_block(decoder, expert, batch, cfg.chunk, places)
        else:
            step += _block(decoder, expert.width, expert.mlp_dim, batch, cfg.chunk, places)
    images = batch * cameras
    vision = _vision(cfg.vlm.vision, images) + _connector(cfg.vlm, images)
    return {"vision": vision, "prefix": prefix, "state": state, "step": step}


def chunk_cost(stages: Mapping[str, Cost], cfg: VLAConfig) -> dict[str, Cost]:
    """What `policy_cost` gives, with "steps" in the place of "step": all calls of the expert for a chunk."""
    calls = cfg.num_steps * (1 if cfg.solver == "euler" else 2)
    once = {name: cost for name, cost in stages.items() if name != "step"}
    return {**once, "steps": stages["step"] * calls}


def vlm_cost(
    cfg: VLMConfig, *, tiles: int, tokens: int, batch: int = 1, context: int | None = None
) -> dict[str, Cost]:
    """Prompts of `tiles` pictures and `tokens` tokens, theirs included, each; then one token more.

    "vision", "connector", "prefill" with the logits of the last position, and "decode", which reads `context`
    cached positions, those of the prompt if it is None.
    """
    decoder = cfg.decoder
    head = _linear(batch, decoder.width, decoder.vocab)
    past = tokens if context is None else context
    return {
        "vision": _vision(cfg.vision, batch * tiles),
        "connector": _connector(cfg, batch * tiles),
        "prefill": _decoder(decoder, batch, tokens, 0) + head,
        "decode": _decoder(decoder, batch, 1, past) + head,
    }


def _linear(rows: int, width: int, out: int, *, bias: bool = False) -> Cost:
    return Cost(2 * rows * width * out, width * out + bias * out)


def _attention(batch: int, heads: int, head_dim: int, queries: int, keys: int) -> Cost:
    return Cost(4 * batch * heads * head_dim * queries * keys)


def _vision(cfg: VisionConfig, images: int) -> Cost:
    if not images:
        return Cost()
    total, channels, side = Cost(), 3, cfg.image_size
    for width in cfg.stem:
        side = (side + 1) // 2
        total += _linear(images * side**2, 9 * channels, width, bias=True)
        channels = width
    size = cfg.patch_size // 2 ** len(cfg.stem)
    patches, width = cfg.grid**2, cfg.width
    total += _linear(images * patches, channels * size**2, width, bias=True)
    rows = images * patches
    block = (
        _linear(rows, width, 3 * width, bias=True)
        + _attention(images, cfg.num_heads, width // cfg.num_heads, patches, patches)
        + _linear(rows, width, width, bias=True)
        + _linear(rows, width, cfg.mlp_dim, bias=True)
        + _linear(rows, cfg.mlp_dim, width, bias=True)
        + Cost(weights=4 * width)  # two norms
    )
    return total + block * cfg.num_layers + Cost(weights=(patches + 2) * width)  # positions, last norm


def _connector(cfg: VLMConfig, images: int) -> Cost:
    if not images:
        return Cost()
    return _linear(images * cfg.tokens_per_image, cfg.vision.width * cfg.shuffle**2, cfg.decoder.width)


def _mlp(rows: int, width: int, mlp_dim: int) -> Cost:
    return _linear(rows, width, mlp_dim) * 3 + Cost(weights=2 * width)  # with both norms of the block


def _block(cfg: DecoderConfig, width: int, mlp_dim: int, batch: int, tokens: int, past: int) -> Cost:
    """Self-attention of `tokens` positions to as many and to `past` cached ones, and the MLP."""
    inner, kv, rows = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim, batch * tokens
    return (
        _linear(rows, width, inner + 2 * kv)
        + _attention(batch, cfg.num_heads, cfg.head_dim, tokens, past + tokens)
        + _linear(rows, inner, width)
        + _mlp(rows, width, mlp_dim)
        + Cost(cached=2 * batch * kv * past)
    )


def _cross_block(cfg: DecoderConfig, expert: ExpertConfig, batch: int, tokens: int, past: int) -> Cost:
    inner, kv, rows = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim, batch * tokens
    return (
        _linear(rows, expert.width, inner)
        + _attention(batch, cfg.num_heads, cfg.head_dim, tokens, past)
        + _linear(rows, inner, expert.width)
        + _mlp(rows, expert.width, expert.mlp_dim)
        + Cost(cached=2 * batch * kv * past)
    )


def _decoder(cfg: DecoderConfig, batch: int, tokens: int, past: int) -> Cost:
    block = _block(cfg, cfg.width, cfg.mlp_dim, batch, tokens, past)
    return block * cfg.num_layers + Cost(weights=cfg.width)


def _filled(cfg: DecoderConfig, batch: int, tokens: int, past: int = 0) -> Cost:
    """`Decoder.fill`: the last block makes queries, keys and values, and no more."""
    heads = (cfg.num_heads + 2 * cfg.num_kv_heads) * cfg.head_dim
    block = _block(cfg, cfg.width, cfg.mlp_dim, batch, tokens, past)
    last = _linear(batch * tokens, cfg.width, heads) + Cost(weights=cfg.width)
    return block * (cfg.num_layers - 1) + last


def _ends(cfg: VLAConfig, batch: int) -> Cost:
    """What is around the expert's blocks: actions and time in, the last norm, velocity out."""
    rows, width = batch * cfg.chunk, cfg.expert.width
    return (
        _linear(rows, cfg.action_dim, width, bias=True)
        + _linear(rows, 2 * width, width, bias=True)
        + _linear(rows, width, width, bias=True)
        + _linear(rows, width, cfg.action_dim, bias=True)
        + Cost(weights=width)
    )
