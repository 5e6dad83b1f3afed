"""What is minimised where words are learned: the loss of each token, in rows of several samples."""

import zlib

import torch
import torch.nn.functional as F
from torch import Tensor

from tailorbird.data.order import seed_of
from tailorbird.model.vlm import VLM
from tailorbird.types import Rows


def foretold(rows: Rows, image_token_id: int) -> Tensor:
    """The places whose next token is learned, (B, T) bool: it is of the same sample, and never `<image>`."""
    ahead = rows.learned[:, 1:] & (rows.ids[:, 1:] != image_token_id)
    same = (rows.segment[:, 1:] == rows.segment[:, :-1]) & (rows.segment[:, 1:] >= 0)
    return F.pad(ahead & same, (0, 1))  # (B, T); nothing follows the last place


def apart(segment: Tensor) -> Tensor | None:
    """The mask under which no sample of a row sees another, (B, 1, T, T), True where attention is allowed.

    None where the causal mask does: one sample a row, and padding behind it. Padding sees itself, so that its
    softmax is finite.

    segment: (B, T), on the CPU or not, as `Rows` has it.
    """
    if segment.max() <= 0 and (segment[:, 1:] <= segment[:, :-1]).all():
        return None
    num = segment.shape[1]
    causal = torch.ones(num, num, dtype=torch.bool, device=segment.device).tril()
    return ((segment[:, :, None] == segment[:, None]) & causal)[:, None]  # (B, 1, T, T)


def token_losses(model: VLM, rows: Rows, noise: Tensor | None = None) -> Tensor:
    """Cross-entropy of each token that is learned, (num,), fp32, in the order of `foretold`.

    Only their places are projected to the vocabulary: logits of all would be most of the memory.

    noise: (B, T, C), added to what is embedded.
    """
    places = foretold(rows, model.cfg.image_token_id)
    x = model.embed(rows.ids, rows.pixels)  # (B, T, C)
    if noise is not None:
        x = x + noise.to(x)
    hidden = model.decoder(x, rows.positions, apart(rows.segment))  # (B, T, C)
    logits = model.logits(hidden[places])  # (num, V)
    targets = rows.ids[:, 1:][places[:, :-1]]  # (num,)
    return F.cross_entropy(logits.float(), targets, reduction="none")  # fp32: the loss


def neftune(rows: Rows, width: int, alpha: float, image_token_id: int, seed: int) -> Tensor:
    """Uniform noise on the words, (B, T, C): alpha / sqrt(L * C) at most for a sample of L tokens.

    A row's noise is a function of the seed and of what is in the row, not of where it stands in a batch.
    Nothing is added to pictures and padding.

    Source: NEFTune, arXiv:2310.05914; checked by tests/train/test_vlm_step.py.
    """
    draws = []
    for names in rows.names:
        generator = torch.Generator().manual_seed(seed_of(seed, zlib.crc32("\n".join(names).encode())))
        draws.append(torch.rand(rows.ids.shape[1], width, generator=generator) * 2 - 1)  # (T, C)
    lengths = torch.stack([(one + 1).bincount()[one + 1] for one in rows.segment])  # (B, T), of the samples
    words = (rows.segment >= 0) & (rows.ids != image_token_id)
    scale = alpha * words / (lengths * width).sqrt()  # (B, T)
    return torch.stack(draws) * scale[..., None]  # (B, T, C)
