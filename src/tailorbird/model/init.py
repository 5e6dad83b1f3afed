"""Weights of a model, or of a part of one, that starts from nothing."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tailorbird.model.lm import LM
from tailorbird.model.vision import Vision
from tailorbird.model.vla import VLA
from tailorbird.model.vlm import VLM

WORD_LIKE, NEAR_MEAN = 1.0, 0.1  # how far new rows spread, as a share of the words' own spread
NUM_PICTURES, COARSE = 2, 8  # pictures that a connector is scaled on, made of so many soft spots a side


@torch.no_grad()
def initialise(model: VLA, seed: int) -> None:
    """Draw all weights so that every token enters the decoder at a similar scale.

    SmolVLA multiplies word and image embeddings by sqrt(width), which suits a pretrained VLM; from nothing
    they are drawn that much smaller, or they would drown the state and everything that the layers add.
    """
    generator = torch.Generator().manual_seed(seed)
    scale = math.sqrt(model.cfg.vlm.decoder.width)
    _draw_layers(model, generator)
    nn.init.normal_(model.vlm.decoder.embed.weight, std=1 / scale, generator=generator)
    nn.init.normal_(model.vlm.vision.positions.weight, std=0.3, generator=generator)
    model.vlm.connector.proj.weight /= scale
    model.action_out.weight *= 0.1


@torch.no_grad()
def initialise_vision(vision: Vision, seed: int) -> None:
    """Draw an image tower that has seen nothing."""
    generator = torch.Generator().manual_seed(seed)
    _draw_layers(vision, generator)
    nn.init.normal_(vision.positions.weight, std=0.3, generator=generator)


@torch.no_grad()
def initialise_connector(model: VLM, num_words: int, seed: int) -> None:
    """Draw the connector so that image tokens enter the decoder as large as words do (root mean square).

    The scale is measured on a few seeded pictures of soft spots: how large the features of a trained tower
    are follows from all its weights, outlier channels among them, and not from its sizes.

    Args:
        num_words: the first rows of the embedding are words, those after them are not measured.
    """
    generator = torch.Generator().manual_seed(seed)
    weight, cfg = model.connector.proj.weight, model.cfg
    nn.init.normal_(weight, std=weight.shape[1] ** -0.5, generator=generator)
    spots = torch.randn(NUM_PICTURES, 3, COARSE, COARSE, generator=generator)
    pictures = F.interpolate(spots, (cfg.vision.image_size,) * 2, mode="bicubic").clamp(-1, 1)
    tokens = model.encode_images(pictures.to(weight.dtype))  # (N, tokens per image, C)
    weight *= rms(model.decoder.embed.weight[:num_words]) / rms(tokens)


def draw_rows(table: Tensor, num: int, spread: float, generator: torch.Generator) -> Tensor:
    """Rows like those of a table: normal, with its mean, and its covariance times spread^2.

    Near the mean (a small spread) a row of an output head cannot dominate: by Jensen's inequality the mean's
    exponential is at most the mean of the exponentials, so a new token gets at most about an average token's
    share of the probability, whatever the context. Nor is it dead: it sits where the others are.

    Args:
        table: (V, C), fp32.
    Returns:
        (num, C).
    Source: J. Hewitt, Initializing New Word Embeddings for Pretrained Language Models, 2021; the bound is
        tested in tests/recipes/test_assemble.py.
    """
    mean = table.mean(0)  # (C)
    mix = torch.randn(num, len(table), generator=generator) * (spread / math.sqrt(len(table)))  # (num, V)
    return mean + mix @ (table - mean)  # a random mix of centred rows has their covariance


def grow_vocabulary(
    model: LM, num_words: int, size: int, copies: Mapping[int, int], seed: int
) -> dict[str, Tensor]:
    """The weights of a language model with `size` tokens and a head of its own.

    New rows of the embedding are drawn like words, so that each is a word of its own to the layers; those of
    the head stay close to the mean of the old ones, so that no new token is likely anywhere and none is out
    of reach (`draw_rows`). A tied head starts as a copy of the embedding.

    Args:
        num_words: tokens that the model knows; rows after them are padding, and are drawn anew.
        copies: i: j gives row i of both tables the values of row j.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = dict(model.state_dict())
    embedding = weights["decoder.embed.weight"]
    tables = {
        "decoder.embed.weight": (embedding, WORD_LIKE),
        "head.weight": (weights.get("head.weight", embedding), NEAR_MEAN),
    }
    for name, (table, spread) in tables.items():
        words = table[:num_words]
        weights[name] = torch.cat([words, draw_rows(words, size - num_words, spread, generator)])  # (V, C)
        for new, old in copies.items():
            weights[name][new] = words[old]
    return weights


def resize_positions(positions: Tensor, grid: int) -> Tensor:
    """Learned positions of a square grid of patches for another one, interpolated bicubically.

    With antialiasing, which also picks the cubic that leaves straight lines straight.

    positions: (P, C). Returns (grid^2, C).
    """
    side = math.isqrt(len(positions))
    plane = positions.T.unflatten(1, (side, side))[None]  # (1, C, side, side)
    plane = F.interpolate(plane, (grid, grid), mode="bicubic", antialias=True)  # (1, C, grid, grid)
    return plane[0].flatten(1).T.contiguous()  # (grid^2, C)


def rms(x: Tensor) -> Tensor:
    return x.float().square().mean().sqrt()


def _draw_layers(model: nn.Module, generator: torch.Generator) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            fan_in = module.weight[0].numel()
            std = 1 / math.sqrt(fan_in)
            nn.init.trunc_normal_(module.weight, std=std, a=-3 * std, b=3 * std, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
