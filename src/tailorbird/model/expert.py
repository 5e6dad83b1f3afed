"""Action expert: a narrow decoder over the actions of a chunk, which reads the VLM's keys and values."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tailorbird.model.cache import KV, FrozenCache
from tailorbird.model.config import DecoderConfig, ExpertConfig
from tailorbird.model.decoder import DecoderBlock
from tailorbird.model.layers import GatedMLP, RMSNorm, rotary, rotate


class CrossAttention(nn.Module):
    """Action tokens read the prefix.

    The prefix's keys and values come from the decoder, and are projected once.
    """

    def __init__(self, cfg: DecoderConfig, width: int) -> None:
        super().__init__()
        self.num_kv_heads = cfg.num_kv_heads
        self.num_heads = cfg.num_heads
        kv_width = cfg.num_kv_heads * cfg.head_dim
        self.query = nn.Linear(width, cfg.num_heads * cfg.head_dim, bias=False)
        self.key = nn.Linear(kv_width, kv_width, bias=False)
        self.value = nn.Linear(kv_width, kv_width, bias=False)
        self.out = nn.Linear(cfg.num_heads * cfg.head_dim, width, bias=False)

    def project(self, prefix: KV, dtype: torch.dtype) -> KV:
        """Turn the decoder's keys and values into this layer's own, (B, K, S, D) both. No second rotation.

        dtype: of the result.
        """
        parts = []
        for layer, part in ((self.key, prefix.k), (self.value, prefix.v)):
            flat = part.transpose(1, 2).flatten(2)  # (B, S, K * D)
            own = layer(flat.to(layer.weight.dtype))  # fp32: the release keeps these two layers so
            parts.append(own.to(dtype).unflatten(-1, (self.num_kv_heads, -1)).transpose(1, 2))  # (B, K, S, D)
        return KV(*parts)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor, prefix: KV) -> Tensor:
        """x: (B, L, C); mask: (B, 1, 1, S); prefix: from `project`. Returns (B, L, C)."""
        q = self.query(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, L, D)
        y = F.scaled_dot_product_attention(rotate(q, rope), *prefix, attn_mask=mask, enable_gqa=True)
        return self.out(y.transpose(1, 2).flatten(2))  # (B, L, C)


class CrossBlock(nn.Module):
    def __init__(self, cfg: DecoderConfig, expert: ExpertConfig) -> None:
        super().__init__()
        self.norm_1 = RMSNorm(expert.width, cfg.norm_eps)
        self.attn = CrossAttention(cfg, expert.width)
        self.norm_2 = RMSNorm(expert.width, cfg.norm_eps)
        self.mlp = GatedMLP(expert.width, expert.mlp_dim)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor, prefix: KV) -> Tensor:
        x = x + self.attn(self.norm_1(x), rope, mask, prefix)
        return x + self.mlp(self.norm_2(x))


class View(NamedTuple):
    """Where the actions of a chunk stand and what they may read: the same at each step."""

    own_rope: tuple[Tensor, Tensor]  # (1, 1, L, D) each; cross-attention counts from the first action
    joint_rope: tuple[Tensor, Tensor]  # (B, 1, L, D) each; self-attention counts on from the prefix
    cross_mask: Tensor  # (B, 1, 1, S)
    joint_mask: Tensor  # (B, 1, L, S + L)


def view_of(cfg: DecoderConfig, valid: Tensor, num: int) -> View:
    """Of `num` actions behind a prefix: its valid places and, in self-attention, actions up to one's own.

    valid: (B, S), False at the prefix's padding.
    """
    steps = torch.arange(num, device=valid.device)[None]  # (1, L)
    cross_mask = valid[:, None, None]  # (B, 1, 1, S)
    causal = (steps <= steps.T).expand(valid.shape[0], 1, -1, -1)  # (B, 1, L, L)
    return View(
        own_rope=rotary(steps, cfg.head_dim, cfg.rope_theta),
        joint_rope=rotary(valid.sum(-1, keepdim=True) + steps, cfg.head_dim, cfg.rope_theta),
        cross_mask=cross_mask,
        joint_mask=torch.cat([cross_mask.expand(-1, -1, num, -1), causal], dim=-1),  # (B, 1, L, S + L)
    )


class Expert(nn.Module):
    """Expert layer i reads decoder layer i * (decoder layers / expert layers).

    Source: SmolVLA, arXiv:2506.01844; equality is tested in tests/parity/test_smolvla.py.
    """

    def __init__(self, cfg: DecoderConfig, expert: ExpertConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.stride = cfg.num_layers // expert.num_layers
        self.blocks = nn.ModuleList(
            CrossBlock(cfg, expert)
            if expert.is_cross(layer)
            else DecoderBlock(cfg, expert.width, expert.mlp_dim)
            for layer in range(expert.num_layers)
        )
        self.norm = RMSNorm(expert.width, cfg.norm_eps)

    @property
    def dtype(self) -> torch.dtype:
        """Of what goes in and comes out."""
        return self.norm.weight.dtype

    def project(self, prefix: list[KV]) -> list[KV]:
        """Per expert layer the keys and values it reads: everything that does not depend on the actions."""
        return [
            block.attn.project(kv, self.dtype)
            if isinstance(block, CrossBlock)
            else KV(kv.k.to(self.dtype), kv.v.to(self.dtype))
            for block, kv in zip(self.blocks, prefix[:: self.stride], strict=True)
        ]

    def forward(self, x: Tensor, prefix: list[KV], view: View) -> Tensor:
        """x: (B, L, C); prefix: from `project`; view: from `view_of`. Returns (B, L, C)."""
        cache = FrozenCache(prefix)
        for layer, block in enumerate(self.blocks):
            if isinstance(block, CrossBlock):
                x = block(x, view.own_rope, view.cross_mask, prefix[layer])
            else:
                x = block(x, view.joint_rope, view.joint_mask, cache, layer)
        return self.norm(x)
