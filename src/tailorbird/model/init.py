"""Weights of a model that starts from nothing."""

import math

import torch
from torch import nn

from tailorbird.model.vla import VLA


@torch.no_grad()
def initialise(model: VLA, seed: int) -> None:
    """Draw all weights so that every token enters the decoder at a similar scale.

    SmolVLA multiplies word and image embeddings by sqrt(width), which suits a pretrained VLM; from nothing
    they are drawn that much smaller, or they would drown the state and everything that the layers add.
    """
    generator = torch.Generator().manual_seed(seed)
    scale = math.sqrt(model.cfg.vlm.decoder.width)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            fan_in = module.weight[0].numel()
            std = 1 / math.sqrt(fan_in)
            nn.init.trunc_normal_(module.weight, std=std, a=-3 * std, b=3 * std, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(model.vlm.decoder.embed.weight, std=1 / scale, generator=generator)
    nn.init.normal_(model.vlm.vision.positions.weight, std=0.3, generator=generator)
    model.vlm.connector.proj.weight /= scale
    model.action_out.weight *= 0.1
