"""From logits to the next token. Equality with the reference is tested in tests/infer/test_sampling.py."""

import torch
from torch import Tensor

from tailorbird.infer.config import Sampling

ROW_STRIDE = 0x9E3779B97F4A7C15  # odd, so that rows differ in the 32 bits that a CPU generator reads


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make tokens that were there already less likely. logits, seen: (B, V); seen is bool."""
    lower = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen, lower, logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Set all but the k largest to -inf; what equals the k-th stays too. logits: (B, V)."""
    least = logits.topk(min(k, logits.shape[-1])).values[:, -1:]  # (B, 1)
    return logits.masked_fill(logits < least, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Set the unlikeliest tokens, whose probabilities sum to at most 1 - p, to -inf. logits: (B, V)."""
    ascending, order = logits.sort()
    dropped = ascending.softmax(-1).cumsum(-1) <= 1 - p
    dropped[:, -1] = False
    return logits.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)


def warp(logits: Tensor, sampling: Sampling) -> Tensor:
    """Temperature, top-k, top-p. logits: (B, V), fp32. Returns (B, V)."""
    logits = logits / sampling.temperature
    if sampling.top_k:
        logits = keep_top_k(logits, sampling.top_k)
    return keep_top_p(logits, sampling.top_p) if sampling.top_p < 1 else logits


def mark(ids: Tensor, valid: Tensor, vocab: int) -> Tensor:
    """Which tokens a row holds, padding aside. ids, valid: (B, T). Returns (B, V), bool."""
    seen = torch.zeros(len(ids), vocab + 1, dtype=torch.bool, device=ids.device)  # (B, V + 1)
    return seen.scatter_(1, ids.masked_fill(~valid, vocab), True)[:, :vocab]  # (B, V)


class Sampler:
    """Chooses one token after the other for the rows of a batch.

    Every row has a generator of its own, so what it draws does not depend on its neighbours.
    """

    def __init__(self, sampling: Sampling, seen: Tensor) -> None:
        """seen: (B, V), the tokens of the prompts as `mark` gives them; kept and extended."""
        self.sampling, self.seen = sampling, seen
        self.generators = [
            torch.Generator(seen.device).manual_seed((sampling.seed + row * ROW_STRIDE) % 2**64)
            for row in range(len(seen))
        ]

    def __call__(self, logits: Tensor) -> Tensor:
        """logits: (B, V). Returns (B,), the chosen ids; -1 where the logits are not numbers.

        It does not wait for the device.
        """
        best, token = logits.max(dim=-1)  # (B,) each; NaN counts as the largest
        penalty = self.sampling.repetition_penalty
        if penalty != 1:
            logits = penalise(logits.float(), self.seen, penalty)  # fp32: as the reference
            token = logits.argmax(-1)  # (B,)
        if self.sampling.temperature:
            token = self._draw(warp(logits.float(), self.sampling).softmax(-1))  # fp32: softmax
        if penalty != 1:
            self.seen.scatter_(1, token[:, None], True)
        return token.masked_fill(~best.isfinite(), -1)

    def _draw(self, probs: Tensor) -> Tensor:
        """One draw a row: the arithmetic of torch.multinomial, which would wait for the device to check it.

        probs: (B, V). Returns (B,).
        """
        noise = torch.empty_like(probs)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return (probs / noise).argmax(-1)  # (B,)
