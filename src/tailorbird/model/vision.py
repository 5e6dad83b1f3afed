"""Image tower: SigLIP's vision transformer, without its pooling head."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tailorbird.model.config import VisionConfig


class VisionAttention(nn.Module):
    """Every patch reads every patch."""

    def __init__(self, cfg: VisionConfig) -> None:
        super().__init__()
        self.head_dim = cfg.width // cfg.num_heads
        self.qkv = nn.Linear(cfg.width, 3 * cfg.width)
        self.out = nn.Linear(cfg.width, cfg.width)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (3, -1, self.head_dim))  # (N, P, 3, H, D)
        q, k, v = heads.transpose(1, 3).unbind(2)  # (N, H, P, D) each
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))  # (N, P, C)


class VisionBlock(nn.Module):
    def __init__(self, cfg: VisionConfig) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(cfg.width, eps=cfg.norm_eps)
        self.attn = VisionAttention(cfg)
        self.norm_2 = nn.LayerNorm(cfg.width, eps=cfg.norm_eps)
        self.up = nn.Linear(cfg.width, cfg.mlp_dim)
        self.down = nn.Linear(cfg.mlp_dim, cfg.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm_1(x))
        return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))


class Vision(nn.Module):
    """Patches, learned positions, pre-norm blocks, a final norm.

    The optional stem (not in SigLIP) halves the resolution by small convolutions first. On a CPU the number
    of patches decides the cost, and large patches cut straight from the pixels learn slowly from few frames.
    """

    def __init__(self, cfg: VisionConfig) -> None:
        super().__init__()
        self.stem = nn.ModuleList()
        channels = 3
        for width in cfg.stem:
            self.stem.append(nn.Conv2d(channels, width, kernel_size=3, stride=2, padding=1))
            channels = width
        size = cfg.patch_size // 2 ** len(cfg.stem)
        self.patches = nn.Conv2d(channels, cfg.width, kernel_size=size, stride=size)
        self.positions = nn.Embedding(cfg.grid**2, cfg.width)
        self.blocks = nn.ModuleList(VisionBlock(cfg) for _ in range(cfg.num_layers))
        self.norm = nn.LayerNorm(cfg.width, eps=cfg.norm_eps)

    @property
    def dtype(self) -> torch.dtype:
        """Of what goes in and comes out."""
        return self.norm.weight.dtype

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: (N, 3, image_size, image_size) in [-1, 1]. Returns (N, P, C), patches row by row."""
        for conv in self.stem:
            pixels = F.gelu(conv(pixels), approximate="tanh")  # (N, stem width, half, half)
        x = self.patches(pixels).flatten(2).transpose(1, 2) + self.positions.weight  # (N, P, C)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)
