"""SmolLM2 on its own: the text tower of the family, before it has eyes."""

import torch.nn.functional as F
from torch import Tensor, nn

from tailorbird.model.cache import Cache
from tailorbird.model.config import DecoderConfig
from tailorbird.model.decoder import Decoder


class LM(nn.Module):
    """Equality with the reference is tested in tests/parity/test_gguf.py."""

    def __init__(self, cfg: DecoderConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.decoder = Decoder(cfg)
        self.head = None if cfg.tied else nn.Linear(cfg.width, cfg.vocab, bias=False)

    def embed(self, ids: Tensor) -> Tensor:
        """ids: (B, T). Returns (B, T, C)."""
        return self.decoder.embed(ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: (B, T, C). Returns (B, T, V)."""
        return F.linear(hidden, self.decoder.embed.weight) if self.head is None else self.head(hidden)

    def forward(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Logits for every position, (B, T, V). The arguments are those of `Decoder.forward`."""
        return self.logits(self.decoder(self.embed(ids), positions, mask, cache))
