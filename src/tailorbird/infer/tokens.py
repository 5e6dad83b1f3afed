"""Prefill, then one token after the other: the loop that everything above decorates."""

from collections.abc import Callable, Generator, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tailorbird.errors import ConfigError, DataError
from tailorbird.infer.config import Sampling
from tailorbird.infer.sampling import Sampler, mark
from tailorbird.model.lm import LM
from tailorbird.model.vlm import VLM
from tailorbird.types import Prompts


@torch.inference_mode()
def draw_tokens(
    model: LM | VLM,
    prompts: Prompts,
    sampling: Sampling,
    *,
    tiles_at_once: int = 8,
    cancelled: Callable[[], bool] = lambda: False,
) -> Generator[list[int], None, None]:
    """Yield one id for every row, step by step, as long as any row has room. Nothing ends a row here.

    The result does not depend on the padding or on the other rows; in fp32, to rounding. `cancelled` is asked
    after each group of tiles, and ends it all. Errors are those of `stream`.
    """
    steps = max(num_answer_tokens(model, prompts, sampling))
    check_images(model, prompts)
    if tiles_at_once < 1:
        raise ConfigError(f"{tiles_at_once=} must be at least 1")
    lengths = prompt_lengths(prompts)
    prompts = prompts.to(model.decoder.embed.weight.device, model.decoder.dtype)
    ids, valid = _align(prompts.ids, prompts.valid, max(lengths))
    cache = model.decoder.new_cache(max(lengths) + steps - 1)
    positions = mask = readable = None  # without padding: counted by the decoder, causal
    if min(lengths) < max(lengths):
        positions, mask = _around_padding(valid)
        readable = F.pad(valid, (0, steps - 1), value=True)[:, None, None]  # (B, 1, 1, S)

    sampler = Sampler(sampling, mark(ids, valid, model.decoder.cfg.vocab))
    features = []
    for part in _encode(model, prompts.pixels, tiles_at_once):
        features.append(part)
        if cancelled():
            return
    x = _embed(model, ids, features)  # (B, T, C)
    while True:
        hidden = model.decoder(x, positions, mask, cache)[:, -1:]  # (B, 1, C)
        token = sampler(model.logits(hidden)[:, 0])  # (B,)
        chosen = token.tolist()  # the one wait for the device
        if min(chosen) < 0:
            raise DataError(
                f"the logits of row {chosen.index(min(chosen))} are not finite: the weights are damaged, "
                f"or {model.decoder.dtype} is too narrow for them"
            )
        yield chosen
        if cache.length == cache.max_length:
            return
        x = model.decoder.embed(token[:, None])  # (B, 1, C)
        if positions is not None and readable is not None:
            positions = positions[:, -1:] + 1  # (B, 1)
            mask = readable[..., : cache.length + 1]  # (B, 1, 1, S)


@torch.inference_mode()
def every_logit(model: LM | VLM, prompts: Prompts, *, tiles_at_once: int = 8) -> Tensor:
    """(B, T, V): what follows each position of prompts, padded on either side; padding gives anything.

    Raises:
        DataError: images and prompts do not fit each other.
    """
    check_images(model, prompts)
    prompts = prompts.to(model.decoder.embed.weight.device, model.decoder.dtype)
    positions, mask = (None, None) if bool(prompts.valid.all()) else _around_padding(prompts.valid)
    x = _embed(model, prompts.ids, [*_encode(model, prompts.pixels, tiles_at_once)])  # (B, T, C)
    return model.logits(model.decoder(x, positions, mask))


def prompt_lengths(prompts: Prompts) -> list[int]:
    """Tokens of each row, padding aside."""
    return prompts.valid.sum(-1).tolist()


def num_answer_tokens(model: LM | VLM, prompts: Prompts, sampling: Sampling) -> list[int]:
    """How many tokens each row may draw. The last one is never read, so it needs no position."""
    context, lengths = model.decoder.cfg.max_positions, prompt_lengths(prompts)
    if not lengths or min(lengths) < 1:
        raise DataError(f"prompts of {lengths} tokens: each needs at least one to answer to")
    if max(lengths) > context:
        raise DataError(
            f"a prompt of {max(lengths)} tokens does not fit the model's context of {context}: "
            "shorten the text, show less, or switch the splitting of pictures off"
        )
    return [min(sampling.max_tokens, context - length + 1) for length in lengths]


def check_images(model: LM | VLM, prompts: Prompts) -> None:
    """Refuse prompts whose places, tiles and pixels do not agree, row by row.

    Raises:
        DataError: they do not, or the model has no eyes.
    """
    num_tiles = 0 if prompts.pixels is None else len(prompts.pixels)
    if isinstance(model, LM):
        if num_tiles:
            raise DataError(f"the prompts bring {num_tiles} tiles, and a language model alone has no eyes")
        return
    if len(prompts.tiles) != len(prompts.ids) or sum(prompts.tiles) != num_tiles:
        raise DataError(
            f"{len(prompts.ids)} prompts with tiles={prompts.tiles} do not match pixels of {num_tiles} tiles"
        )
    places = prompts.ids == model.cfg.image_token_id  # (B, T); padding must not be one either
    for row, (found, tiles) in enumerate(zip(places.sum(-1).tolist(), prompts.tiles, strict=True)):
        if found != tiles * model.cfg.tokens_per_image:
            raise DataError(
                f"prompt {row} has {found} <image> places, its {tiles} tiles have "
                f"{model.cfg.tokens_per_image} tokens each: {tiles * model.cfg.tokens_per_image}"
            )


def _encode(model: LM | VLM, pixels: Tensor | None, tiles_at_once: int) -> Iterator[Tensor]:
    """pixels: (N, 3, tile, tile). Yields their tokens in groups of tiles, (n, tokens, C).

    Together they are what all tiles at once give, within 1e-6 in fp32, in less memory.
    """
    if isinstance(model, VLM) and pixels is not None and len(pixels):
        for group in pixels.split(tiles_at_once):
            yield model.encode_images(group)


def _embed(model: LM | VLM, ids: Tensor, features: Sequence[Tensor]) -> Tensor:
    """ids: (B, T); features: (N, tokens, C) in parts. Returns (B, T, C)."""
    if isinstance(model, LM):
        return model.embed(ids)
    return model.place(ids, torch.cat(list(features)) if features else None)


def _align(ids: Tensor, valid: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Move padding, wherever it is, to the left and cut what all rows have.

    ids, valid: (B, T). Returns both as (B, length).
    """
    order = valid.byte().argsort(dim=1, stable=True)[:, -length:]  # (B, length)
    return ids.gather(1, order), valid.gather(1, order)


def _around_padding(valid: Tensor) -> tuple[Tensor, Tensor]:
    """Positions that count what is valid, (B, T), and a mask that is causal over it, (B, 1, T, T).

    Padding reads itself: a query that may read nothing would become NaN. valid: (B, T).
    """
    causal = torch.ones(valid.shape[1], valid.shape[1], dtype=torch.bool, device=valid.device).tril()
    itself = torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
    mask = (valid[:, None] & causal | itself)[:, None]  # (B, 1, T, T)
    return (valid.cumsum(-1) - 1).clamp(min=0), mask
