"""Language model: SmolLM2, a Llama without biases."""

import torch
from torch import Tensor, nn

from tailorbird.model.cache import Cache, StaticCache
from tailorbird.model.config import DecoderConfig
from tailorbird.model.layers import GatedMLP, RMSNorm, SelfAttention, rotary


class DecoderBlock(nn.Module):
    """Pre-norm attention and gated MLP. The action expert uses it too, at another width."""

    def __init__(self, cfg: DecoderConfig, width: int, mlp_dim: int) -> None:
        super().__init__()
        self.norm_1 = RMSNorm(width, cfg.norm_eps)
        self.attn = SelfAttention(cfg, width)
        self.norm_2 = RMSNorm(width, cfg.norm_eps)
        self.mlp = GatedMLP(width, mlp_dim)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: Cache | None, layer: int
    ) -> Tensor:
        x = x + self.attn(self.norm_1(x), rope, mask, cache, layer)
        return x + self.mlp(self.norm_2(x))


class Decoder(nn.Module):
    def __init__(self, cfg: DecoderConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.embed = nn.Embedding(cfg.vocab, cfg.width)
        self.blocks = nn.ModuleList(DecoderBlock(cfg, cfg.width, cfg.mlp_dim) for _ in range(cfg.num_layers))
        self.norm = RMSNorm(cfg.width, cfg.norm_eps)

    @property
    def dtype(self) -> torch.dtype:
        """Of what goes in and comes out."""
        return self.norm.weight.dtype

    def new_cache(self, max_length: int) -> StaticCache:
        """What `forward` remembers an answer in, with room for `max_length` positions."""
        return StaticCache(max_length)

    def forward(
        self,
        x: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Run the blocks and the final norm.

        Args:
            x: (B, T, C), token embeddings.
            positions: (B, T) for the rotary angles; default: counted on from the cache.
            mask: (B, 1, T, S), True where attention is allowed, S = cached + T; default: causal.
            cache: receives the keys and values of the T new positions.
        Returns:
            (B, T, C).
        """
        rope, mask = self._places(x, positions, mask, cache)
        for layer, block in enumerate(self.blocks):
            x = block(x, rope, mask, cache, layer)
        return self.norm(x)

    def fill(
        self, x: Tensor, cache: Cache, positions: Tensor | None = None, mask: Tensor | None = None
    ) -> None:
        """Put into a cache what `forward` puts there, without what the last block makes of it."""
        self.fill_at(x, *self._places(x, positions, mask, cache), cache)

    def fill_at(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: Cache) -> None:
        """`fill` for rotary angles and a mask that are there already."""
        *blocks, last = self.blocks
        for layer, block in enumerate(blocks):
            x = block(x, rope, mask, cache, layer)
        assert isinstance(last, DecoderBlock)
        _, k, v = last.attn.project(last.norm_1(x), rope)
        cache.append(len(blocks), k, v)

    def _places(
        self, x: Tensor, positions: Tensor | None, mask: Tensor | None, cache: Cache | None
    ) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
        """The rotary angles and the mask, None for causal, of new positions."""
        past, num_new = (cache.length if cache is not None else 0), x.shape[1]
        if positions is None:
            positions = torch.arange(past, past + num_new, device=x.device)[None]  # (1, T)
        if mask is None and past and num_new > 1:
            mask = torch.ones(num_new, past + num_new, dtype=torch.bool, device=x.device).tril(past)[
                None, None
            ]
        return rotary(positions, self.cfg.head_dim, self.cfg.rope_theta), mask
