"""What the towers share: normalisation, rotary positions, attention, gated MLP."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tailorbird.model.cache import Cache
from tailorbird.model.config import DecoderConfig


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a gain."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        h = x.float()  # fp32: a mean of squares in bf16 loses the small channels
        h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * h.to(x.dtype)


def rotary(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines for `rotate`.

    Args:
        positions: (B, T) or (1, T), integer.
    Returns:
        Two tensors (B, 1, T, D), fp32. The head is split in halves, not in even and odd channels.
    """
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions[..., None].float() * theta**-exponent  # (B, T, D/2); fp32: bf16 merges far positions
    angles = torch.cat([angles, angles], dim=-1)[:, None]  # (B, 1, T, D)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs (i, i + D/2) of each head by the angle of its position. x: (B, H, T, D)."""
    cos, sin = (part.to(x.dtype) for part in rope)
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Grouped-query attention. q: (B, H, T, D); k, v: (B, K, S, D); mask as in `SelfAttention`.

    Returns (B, H, T, D). In 16-bit types torch's CPU kernel is slow where heads share keys and values. When
    there is one query, the heads of a group pass as its rows: faster, and equal to one
    rounding (tests/model/test_attention.py).
    """
    if q.shape[2] == 1 and q.is_cpu and q.element_size() == 2:
        rows = q.unflatten(1, (k.shape[1], -1)).flatten(2, 3)  # (B, K, H / K, D)
        return F.scaled_dot_product_attention(rows, k, v, attn_mask=mask).flatten(1, 2)[:, :, None]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None and q.shape[2] > 1, enable_gqa=True
    )


class SelfAttention(nn.Module):
    """Grouped-query attention with rotary positions. Output width may differ from the heads' width."""

    def __init__(self, cfg: DecoderConfig, width: int) -> None:
        super().__init__()
        self.head_dim = cfg.head_dim
        self.splits = [cfg.num_heads, cfg.num_kv_heads, cfg.num_kv_heads]
        self.qkv = nn.Linear(width, sum(self.splits) * cfg.head_dim, bias=False)
        self.out = nn.Linear(cfg.num_heads * cfg.head_dim, width, bias=False)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: Cache | None, layer: int
    ) -> Tensor:
        """x: (B, T, C); mask: (B, 1, T, S), True where attention is allowed, None for causal.

        Returns (B, T, C).
        """
        q, k, v = self.project(x, rope)
        if cache is not None:
            k, v = cache.append(layer, k, v)  # (B, K, S, D)
        return self.out(attend(q, k, v, mask).transpose(1, 2).flatten(2))  # (B, T, C)

    def project(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """x: (B, T, C). Returns queries (B, H, T, D), keys and values (B, K, T, D), turned."""
        heads = self.qkv(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, H + 2K, T, D)
        q, k, v = heads.split(self.splits, dim=1)
        return rotate(q, rope), rotate(k, rope), v


class GatedMLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, width: int, mlp_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, mlp_dim, bias=False)
        self.up = nn.Linear(width, mlp_dim, bias=False)
        self.down = nn.Linear(mlp_dim, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))
