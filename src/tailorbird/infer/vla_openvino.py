"""SmolVLA on the CPU: three compiled calls, pictures, reading and a step, and torch between them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tailorbird.errors import ConfigError
from tailorbird.infer.config import Precision
from tailorbird.infer.openvino import Compiled, Held, find_name
from tailorbird.model.cache import KV, DenseCache
from tailorbird.model.decoder import Decoder
from tailorbird.model.expert import Expert, View, view_of
from tailorbird.model.int8 import is_int8
from tailorbird.model.layers import rotary
from tailorbird.model.vla import VLA
from tailorbird.model.vlm import VLM

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "int8")


# Flat modules have tensors as inputs and outputs, and nothing else: that can be traced.


class FlatSight(nn.Module):
    def __init__(self, vlm: VLM) -> None:
        super().__init__()
        self.vlm = vlm

    def forward(self, pixels: Tensor) -> Tensor:
        return self.vlm.encode_images(pixels)


class FlatReading(nn.Module):
    """`VLA.read`: a scene, of which nothing is past, and the state's one place, of which the scene is."""

    def __init__(self, decoder: Decoder, expert: Expert) -> None:
        super().__init__()
        self.decoder, self.expert = decoder, expert

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        cache = DenseCache(_pairs(past))
        before = cache.length
        self.decoder.fill_at(x, (cos, sin), mask, cache)
        new = cache.since(before)
        return tuple(part for kv in [*new, *self.expert.project(new)] for part in kv)


class FlatStep(nn.Module):
    def __init__(self, model: VLA) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_t: Tensor, time: Tensor, *inputs: Tensor) -> Tensor:
        """inputs: the view's six tensors, then keys and values of each layer."""
        own_cos, own_sin, joint_cos, joint_sin, cross_mask, joint_mask, *kv = inputs
        view = View((own_cos, own_sin), (joint_cos, joint_sin), cross_mask, joint_mask)
        return self.model.step(x_t, time, _pairs(kv), view)


class CompiledSight(nn.Module):
    """In the place of the image tower; its tokens are connected already."""

    dtype = torch.float32

    def __init__(self, vlm: VLM, dtype: Precision) -> None:
        super().__init__()
        side = vlm.cfg.vision.image_size
        self._call = Compiled(FlatSight(vlm), [torch.zeros(1, 3, side, side)], dtype, vlm.cfg.vision.width)

    def forward(self, pixels: Tensor) -> Tensor:
        # one by one: what a picture becomes on the way stays in the processor's cache
        return torch.cat([self._call(picture)[0] for picture in pixels.split(1)])


class CompiledStep(nn.Module):
    """The whole step; its output is the velocity."""

    def __init__(self, model: VLA, dtype: Precision) -> None:
        super().__init__()
        cfg, decoder = model.cfg, model.cfg.vlm.decoder
        view = view_of(decoder, torch.ones(1, 3, dtype=torch.bool), 2)
        kv = [torch.zeros(1, decoder.num_kv_heads, 3, decoder.head_dim)] * (2 * cfg.expert.num_layers)
        x_t, time = torch.zeros(1, 2, cfg.action_dim), torch.zeros(1, 1, cfg.expert.width)
        self._call = Compiled(FlatStep(model), [x_t, time, *_flat(view), *kv], dtype, cfg.expert.width)
        self._last: tuple[list[KV], View, Held] | None = None

    def forward(self, x_t: Tensor, time: Tensor, layers: list[KV], view: View) -> Tensor:
        last = self._last  # once: another thread may exchange it
        if last is None or last[0] is not layers or last[1] is not view:
            last = layers, view, Held(*_flat(view), *(part for kv in layers for part in kv))
            self._last = last
        return self._call(x_t, time, held=last[2])[0]


class CompiledVLA(VLA):
    """A policy whose image tower, decoder and expert are compiled. What lies between them is the VLA's own.

    It takes over the model, of which it leaves the words' table only. One compiled reading, with one copy of
    the weights, serves the scene and the state: a state that comes while a scene is read waits for that, but
    not for the image tower.
    """

    def __init__(self, model: VLA, dtype: Precision) -> None:
        nn.Module.__init__(self)
        self.cfg, self.vlm, self.state_in, self.precision = model.cfg, model.vlm, model.state_in, dtype
        self.add_module("action_out", CompiledStep(model, dtype))
        self._read = self._compile_reading(model, dtype)
        model.expert.blocks = self.vlm.decoder.blocks = nn.ModuleList()
        sight = CompiledSight(self.vlm, dtype)
        self.vlm.set_submodule("vision", sight)
        self.vlm.set_submodule("connector", nn.Identity())

    def _compile_reading(self, model: VLA, dtype: Precision) -> Compiled:
        decoder, mask = model.vlm.decoder, torch.ones(1, 1, 3, 5, dtype=torch.bool)
        x, rope = torch.zeros(1, 3, decoder.cfg.width), self._rope(torch.arange(3)[None])
        example = [x, *rope, mask, *self._past(1, 2)]
        return Compiled(FlatReading(decoder, model.expert), example, dtype, decoder.cfg.width)

    def _past(self, batch: int, num: int) -> list[Tensor]:
        """Keys and values of the decoder's layers at `num` places."""
        cfg = self.cfg.vlm.decoder
        return [torch.zeros(batch, cfg.num_kv_heads, num, cfg.head_dim)] * (2 * cfg.num_layers)

    def _rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        cfg = self.cfg.vlm.decoder
        return rotary(positions, cfg.head_dim, cfg.rope_theta)

    def read(self, x: Tensor, positions: Tensor, mask: Tensor, past: list[KV]) -> tuple[list[KV], list[KV]]:
        flat = [part for kv in past for part in kv] or self._past(len(x), 0)
        found = self._read(x, *self._rope(positions), mask, *flat)
        return _pairs(found[: len(flat)]), _pairs(found[len(flat) :])

    def step(self, x_t: Tensor, time: Tensor, layers: list[KV], view: View) -> Tensor:
        return self.action_out(x_t, time, layers, view)


def _pairs(parts: Sequence[Tensor]) -> list[KV]:
    return [KV(k, v) for k, v in zip(parts[::2], parts[1::2], strict=True)]


def _flat(view: View) -> list[Tensor]:
    return [*view.own_rope, *view.joint_rope, view.cross_mask, view.joint_mask]


def require_precision(dtype: str | torch.dtype | None) -> Precision:
    """Raises ConfigError when policies are not computed in this type. None is float32."""
    return find_name(dtype or "float32", PRECISIONS)


def find_precision(dtype: str | torch.dtype | None, model: VLA) -> Precision:
    """What to compute in. None is int8 for a quantised policy, else float32.

    Raises:
        ConfigError: policies are not computed in this type, or the weights are not in it.
    """
    quantised = is_int8(model)
    precision = require_precision(dtype or ("int8" if quantised else None))
    if quantised and precision != "int8":
        raise ConfigError(f"the policy's weights are int8, not {precision}: ask for int8")
    if precision == "int8" and not quantised:
        raise ConfigError(
            "the policy's weights are not int8: `tailorbird quantise POLICY --out FOLDER` first"
        )
    return precision
