"""Generation as slow and obvious as it can be: what the engine must reproduce token for token."""

import torch
from torch import Tensor

from tailorbird.model.lm import LM
from tailorbird.model.vlm import VLM


@torch.no_grad()
def generate(
    model: LM | VLM, ids: Tensor, pixels: Tensor | None, max_tokens: int, end_ids: frozenset[int]
) -> list[int]:
    """The likeliest token, again and again. ids: (T,), one prompt; pixels: (N, 3, image_size, image_size)."""
    prompt = model.embed(ids[None], pixels) if isinstance(model, VLM) else model.embed(ids[None])  # (1, T, C)
    answer: list[int] = []
    while len(answer) < max_tokens:
        said = model.decoder.embed(torch.tensor([answer], dtype=torch.long))  # (1, answer, C)
        logits = model.logits(model.decoder(torch.cat([prompt, said], dim=1)))  # (1, T + answer, V)
        answer.append(int(logits[0, -1].argmax()))
        if answer[-1] in end_ids:
            break
    return answer
