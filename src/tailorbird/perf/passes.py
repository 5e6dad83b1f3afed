"""A pass of a training without numbers: on the meta device, counted while it happens."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tailorbird.data.lerobot import LeRobotDataset
from tailorbird.model.vla import VLA
from tailorbird.model.vlm import VLM
from tailorbird.processing.pipeline import Pipeline
from tailorbird.train.config import VLATrainConfig
from tailorbird.train.vla_step import Drawn, vla_loss
from tailorbird.types import Inputs

ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # saves what every fused kernel saves


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Rows of a VLM that are computed at once. learned: tokens of each that are foretold."""

    rows: int
    tokens: int
    tiles: int
    learned: int


def vlm_pass(shape: Shape) -> Callable[[VLM], Tensor]:
    """A loss as that of `train.step.token_losses`, which asks for numbers on its way."""

    def call(network: VLM) -> Tensor:
        side = network.cfg.vision.image_size
        levels = torch.empty(shape.rows * shape.tiles, 3, side, side, dtype=torch.uint8, device="meta")
        features = network.encode_images(levels.float().to(network.vision.dtype))  # (N, tokens, C)
        x = network.decoder.embed(_numbers(shape.rows, shape.tokens))  # (B, T, C)
        shown = features.flatten(0, 1)[: x.shape[:2].numel()].to(x.dtype)
        x = torch.cat([x.flatten(0, 1)[len(shown) :], shown]).view_as(x)  # (B, T, C)
        mask = torch.ones(shape.rows, 1, shape.tokens, shape.tokens, dtype=torch.bool, device="meta")
        hidden = network.decoder(x, _numbers(shape.rows, shape.tokens), mask)  # (B, T, C)
        logits = network.logits(hidden[:, : shape.learned].flatten(0, 1))  # (num, V)
        return F.cross_entropy(logits.float(), _numbers(len(logits)), reduction="sum")  # fp32: the loss

    return call


def _numbers(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.long, device="meta")


def vla_pass(
    pipeline: Pipeline, data: LeRobotDataset, cfg: VLATrainConfig, model: VLA
) -> Callable[[VLA], Tensor]:
    """The loss of a part of a batch of this data."""
    num, side = cfg.batch // cfg.accumulate, model.cfg.vlm.vision.image_size
    frames = [torch.zeros(1, side, side, 3, dtype=torch.uint8) for _ in pipeline.seen_cameras]
    one = pipeline.prepare(frames, torch.from_numpy(np.asarray(data.state[:1])), list(data.tasks[:1]))
    seen = {name: _empty(num, *value.shape[1:], like=value) for name, value in vars(one).items()}
    chunk = (num * cfg.draws, model.cfg.chunk)
    actions = _empty(*chunk, model.cfg.action_dim, like=one.state)
    t = _empty(*(chunk if model.cfg.max_delay else chunk[:1]), like=one.state)
    valid = _empty(*chunk, like=one.ids_valid)
    drawn = Drawn(inputs=Inputs(**seen), actions=actions, noise=actions, t=t, valid=valid)
    return lambda network: vla_loss(network, drawn)


def _empty(*shape: int, like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device="meta")


def _forward_flops(q: Sequence[int], k: Sequence[int], *_: Any, **__: Any) -> int:
    return 4 * q[0] * q[1] * q[2] * k[2] * q[3]


def _backward_flops(_: Any, q: Sequence[int], k: Sequence[int], *__: Any, **___: Any) -> int:
    """Five products instead of two: the scores are made again."""
    return 5 * _forward_flops(q, k) // 2


FLOPS = {
    ATTENTION: _forward_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward_flops,
}


@contextmanager
def fused_attention() -> Iterator[None]:
    """Attention on the meta device as by a fused kernel, which PyTorch does not choose there.

    A TorchFunctionMode would not be asked where a block is computed again.
    """
    usual = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = _fused  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = usual


def _fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    enable_gqa: bool = False,
) -> Tensor:
    """A mask is made numbers in every call, as PyTorch does."""
    assert enable_gqa or q.shape[1] == k.shape[1]
    bias = None if attn_mask is None else torch.empty_like(attn_mask, dtype=q.dtype)
    return ATTENTION(q, k, v, 0.0, is_causal, attn_mask=bias)[0]


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors on the meta device that are made inside, until nothing holds them.

    before: tensors that were there; views of them are not new.
    """

    def __init__(self, before: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known = {one.untyped_storage()._cdata for one in before}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, Tensor) and one.is_meta:
                self._add(one.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key, storage.nbytes())

    def _drop(self, key: int, num: int) -> None:
        self._known.discard(key)
        self.now -= num
