"""SmolVLM: an image tower whose tokens take the places of `<image>` in the language model's input."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tailorbird.errors import DataError
from tailorbird.model.cache import Cache
from tailorbird.model.config import VLMConfig
from tailorbird.model.connector import Connector
from tailorbird.model.decoder import Decoder
from tailorbird.model.vision import Vision


class VLM(nn.Module):
    """Source: SmolVLM, arXiv:2504.05299; equality is tested in tests/parity/test_smolvlm.py."""

    def __init__(self, cfg: VLMConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.vision = Vision(cfg.vision)
        self.connector = Connector(cfg.vision.width, cfg.decoder.width, cfg.shuffle)
        self.decoder = Decoder(cfg.decoder)
        self.head = None if cfg.decoder.tied else nn.Linear(cfg.decoder.width, cfg.decoder.vocab, bias=False)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """pixels: (N, 3, image_size, image_size) in [-1, 1]. Returns (N, tokens_per_image, C)."""
        return self.connector(self.vision(pixels))

    def embed(self, ids: Tensor, pixels: Tensor | None) -> Tensor:
        """Embed a prompt: words from the table, `<image>` places from the images in order.

        Args:
            ids: (B, T).
            pixels: (N, 3, image_size, image_size), all images of the batch, or None.
        Returns:
            (B, T, C).
        """
        return self.place(ids, None if pixels is None else self.encode_images(pixels))

    def place(self, ids: Tensor, features: Tensor | None) -> Tensor:
        """Embed a prompt whose images are encoded already.

        Args:
            ids: (B, T).
            features: (N, tokens_per_image, C) as `encode_images` gives them, or None for no image.
        Returns:
            (B, T, C).
        Raises:
            DataError: the prompt has more or fewer `<image>` places than the images have tokens. On a device,
                where reading the number would wait for all that is under way, its own assertion fails.
        """
        places = ids == self.cfg.image_token_id  # (B, T)
        num_places, num_tokens = places.sum(), 0 if features is None else features.shape[:2].numel()
        if not ids.is_cpu:
            torch._assert_async(num_places == num_tokens, "<image> places and image tokens differ in number")
        elif num_places != num_tokens:
            raise DataError(
                f"the prompts hold {int(num_places)} <image> places, the images {num_tokens} tokens "
                f"({self.cfg.tokens_per_image} each): give every image its places"
            )
        x = self.decoder.embed(ids)  # (B, T, C)
        if features is None:
            return x
        return x.masked_scatter(places.unsqueeze(-1), features.to(x.dtype))

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: (B, T, C). Returns (B, T, V)."""
        return F.linear(hidden, self.decoder.embed.weight) if self.head is None else self.head(hidden)

    def forward(
        self,
        ids: Tensor,
        pixels: Tensor | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Logits for every position, (B, T, V).

        The arguments are those of `embed` and of `Decoder.forward`.
        """
        return self.logits(self.decoder(self.embed(ids, pixels), positions, mask, cache))
