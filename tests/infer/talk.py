"""Two tiny models that talk, and their prompts. No two sizes are equal by accident."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tailorbird.model.build import build_model
from tailorbird.model.config import DecoderConfig, VisionConfig, VLMConfig
from tailorbird.model.lm import LM
from tailorbird.model.vlm import VLM
from tailorbird.types import Prompts

IMAGE, VOCAB, CONTEXT = 1, 53, 60
DECODER = DecoderConfig(
    width=22,
    num_layers=3,
    num_heads=6,
    num_kv_heads=3,
    head_dim=8,
    mlp_dim=26,
    vocab=VOCAB,
    max_positions=CONTEXT,
)
SEEING = VLMConfig(
    vision=VisionConfig(image_size=24, patch_size=4, width=10, num_layers=2, num_heads=2, mlp_dim=14),
    decoder=DECODER,
    shuffle=3,
    image_token_id=IMAGE,
)


def build(cfg: DecoderConfig | VLMConfig, seed: int = 0) -> LM | VLM:
    """Large weights, so that the next token depends on what was read."""
    model = build_model(cfg).eval().requires_grad_(False)
    assert isinstance(model, LM | VLM)
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        if value.dim() > 1:
            value.normal_(std=1.5 * value[0].numel() ** -0.5, generator=generator)
        elif "norm" not in name:
            value.normal_(std=0.2, generator=generator)
    return model


def words(num: int, seed: int = 0) -> Tensor:
    """(num,) ids of words."""
    return torch.randint(2, VOCAB, (num,), generator=torch.Generator().manual_seed(seed))


def with_images(num_words: int, num_images: int, seed: int = 0) -> Tensor:
    """(T,) ids: a word before each image, the rest behind the last."""
    rows = list(words(num_words, seed).split(1))
    image = torch.full((SEEING.tokens_per_image,), IMAGE)
    return torch.cat(
        [part for i, row in enumerate(rows) for part in ([row, image] if i < num_images else [row])]
    )


def pictures(num: int, seed: int = 0) -> Tensor | None:
    """(num, 3, 24, 24), or None for none."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num, 3, 24, 24, generator=generator) * 2 - 1 if num else None


def batch(
    rows: Sequence[Tensor], pixels: Tensor | None = None, *, side: str = "left", pad: int = 0
) -> Prompts:
    """Prompts of unequal lengths, padded on one side."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad)
    valid = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[i, place], valid[i, place] = row, True
    tiles = tuple(int((row == IMAGE).sum()) // SEEING.tokens_per_image for row in rows)
    return Prompts(ids=ids, valid=valid, learned=torch.zeros_like(valid), pixels=pixels, tiles=tiles)


def letters(ids: list[int]) -> str:
    """A character for every id."""
    return "".join(chr(ord("0") + id_) for id_ in ids)
