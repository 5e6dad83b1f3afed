"""SmolVLM and SmolLM2 on the CPU: tower, decoder and head compiled, the cache inside the compiled decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor, nn

from tailorbird.errors import ConfigError
from tailorbird.infer.config import Precision
from tailorbird.infer.openvino import Compiled, find_core, find_name, import_openvino, settings, trace
from tailorbird.infer.stateful import hold, pack_int4, widen_heads
from tailorbird.infer.vla_openvino import CompiledSight
from tailorbird.model.cache import KV, Cache
from tailorbird.model.decoder import Decoder
from tailorbird.model.int4 import GROUP, Int4Linear
from tailorbird.model.int8 import shrink
from tailorbird.model.layers import rotary
from tailorbird.model.lm import LM
from tailorbird.model.vlm import VLM

if TYPE_CHECKING:
    import openvino as ov


def find_precision(dtype: str | torch.dtype | None) -> Precision:
    """What to compute in; None is float32.

    Raises:
        ConfigError: OpenVINO does not compute in this type.
    """
    return find_name(dtype or "float32", get_args(Precision))


def compile_vlm(model: LM | VLM, dtype: Precision) -> None:
    """Exchange the organs of a model for compiled ones. Their torch weights are dropped, but for the words'.

    What each dtype is worth: tests/infer/test_vlm_openvino.py. int4 is for the decoder's weights; the tower,
    the head, and layers whose inputs do not come in groups of 64, are in int8 then.

    Raises:
        ConfigError: OpenVINO is not installed.
    """
    decoder = model.decoder
    import_openvino()  # before anything is changed
    if model.head is None:
        model.head = nn.Linear(decoder.cfg.width, decoder.cfg.vocab, bias=False, device="meta")
        model.head.weight = decoder.embed.weight
    others: Precision = "int8" if dtype == "int4" else dtype
    if dtype == "int4":
        for name in _linear(decoder):
            layer = decoder.get_submodule(name)
            if isinstance(layer, nn.Linear) and layer.in_features % GROUP == 0:
                decoder.set_submodule(name, Int4Linear(layer))
    if others == "int8":
        shrink(model, _linear(model))
    model.set_submodule("head", CompiledHead(model.head, decoder.cfg.width, others))
    model.set_submodule("decoder", CompiledDecoder(decoder, dtype))
    if isinstance(model, VLM):
        model.set_submodule("vision", CompiledSight(model, others))
        model.set_submodule("connector", nn.Identity())


class FlatDecoder(nn.Module):
    """The decoder's blocks, with the keys and values of all layers as inputs and as outputs."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, rows: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """rows: (B,) int32, the row of the past that each row goes on with."""
        cache = PastInputs(past, rows)
        for layer, block in enumerate(self.decoder.blocks):
            x = block(x, (cos, sin), mask, cache, layer)
        return self.decoder.norm(x), *cache.now


class PastInputs:
    """A cache whose past came as inputs; it collects what they become."""

    length = 0  # nobody asks while a graph is traced

    def __init__(self, past: Sequence[Tensor], rows: Tensor) -> None:
        self._past, self._rows = past, rows
        self.now: list[Tensor] = []

    def append(self, layer: int, k: Tensor, v: Tensor) -> KV:
        past = (part.index_select(0, self._rows) for part in self._past[2 * layer : 2 * layer + 2])
        kv = KV(*(torch.cat([old, new], dim=2) for old, new in zip(past, (k, v), strict=True)))
        self.now += kv
        return kv


class HeldCache:
    """Keys and values of one answer inside OpenVINO. Answers on their way side by side do not share one."""

    def __init__(self, request: ov.InferRequest, max_length: int) -> None:
        self.length, self.max_length = 0, max_length
        self._request = request

    def append(self, layer: int, k: Tensor, v: Tensor) -> KV:
        raise ConfigError("keys and values that OpenVINO holds are not at hand: load with the engine torch")

    def read(self, x: Tensor, *others: Tensor) -> Tensor:
        """Run the decoder on the next positions. x: (B, T, C). Returns (B, T, C)."""
        if self.length + x.shape[1] > self.max_length:
            raise ConfigError(f"a cache of {self.max_length=} positions cannot take {x.shape[1]} more")
        rows = torch.arange(len(x), dtype=torch.int32)
        arrays = [value.contiguous().numpy() for value in (x.float(), *others, rows)]
        hidden = self._request.infer(arrays, share_inputs=True)[0]
        self.length += x.shape[1]
        return torch.from_numpy(hidden.copy())  # the next call writes there again


class CompiledDecoder(nn.Module):
    """In the place of the decoder. In and out it is fp32."""

    dtype = torch.float32

    def __init__(self, decoder: Decoder, dtype: Precision) -> None:
        super().__init__()
        self.cfg, self.embed = decoder.cfg, decoder.embed
        self._compiled = _compile(decoder, dtype)

    def new_cache(self, max_length: int) -> HeldCache:
        return HeldCache(self._compiled.create_infer_request(), max_length)

    def forward(
        self,
        x: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """As `Decoder.forward`; `cache` is one of `new_cache`."""
        held = self.new_cache(x.shape[1]) if cache is None else cache
        if not isinstance(held, HeldCache):
            raise ConfigError(f"a {type(held).__name__} is not its own: make one with new_cache")
        past, num_new = held.length, x.shape[1]
        if positions is None:
            positions = torch.arange(past, past + num_new)[None]  # (1, T)
        if mask is None:
            mask = torch.ones(num_new, past + num_new, dtype=torch.bool).tril(past)[None, None]
        return held.read(x, *rotary(positions, self.cfg.head_dim, self.cfg.rope_theta), mask)


class CompiledHead(nn.Module):
    """In the place of the output head."""

    def __init__(self, head: nn.Module, width: int, dtype: Precision) -> None:
        super().__init__()
        self._call = Compiled(head, [torch.zeros(1, 1, width)], dtype, width)

    def forward(self, hidden: Tensor) -> Tensor:
        return self._call(hidden)[0]


def _linear(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def _compile(decoder: Decoder, dtype: Precision) -> ov.CompiledModel:
    openvino = import_openvino()
    cfg, num_held = decoder.cfg, 2 * decoder.cfg.num_layers
    rope = torch.ones(1, 1, 3, cfg.head_dim)
    mask = torch.ones(1, 1, 3, 5, dtype=torch.bool)
    past = [torch.ones(1, cfg.num_kv_heads, 2, cfg.head_dim)] * num_held
    example = (torch.ones(1, 3, cfg.width), rope, rope, mask, torch.zeros(1, dtype=torch.int32), *past)
    shapes = [[-1, -1, cfg.width], *[[-1, 1, -1, cfg.head_dim]] * 2, [-1, 1, -1, -1], [-1]]
    shapes += [[-1, cfg.num_kv_heads, -1, cfg.head_dim]] * num_held
    model = trace(FlatDecoder(decoder), example)
    model.reshape(dict(zip(model.inputs, map(openvino.PartialShape, shapes), strict=True)))
    hold(model, num_held, (cfg.num_kv_heads, cfg.head_dim))
    widen_heads(model, cfg.num_heads // cfg.num_kv_heads)
    options = settings(core := find_core(), dtype, cfg.width)
    if dtype == "int4":
        pack_int4(model)
        options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = GROUP  # of activations: no wider than those of weights
    options["KV_CACHE_PRECISION"] = options["INFERENCE_PRECISION_HINT"]  # its own choice is int8
    return core.compile_model(model, "CPU", options)
