"""A VLA that a test can afford; no two of its sizes are equal by accident. And what it sees."""

from dataclasses import replace

import torch
from torch import Tensor

from tailorbird.model.config import DecoderConfig, ExpertConfig, VisionConfig, VLAConfig, VLMConfig
from tailorbird.model.vla import VLA, Reading
from tailorbird.types import Inputs

TINY_VLA = VLAConfig(
    vlm=VLMConfig(
        vision=VisionConfig(
            image_size=16, patch_size=4, width=10, num_layers=1, num_heads=2, mlp_dim=14, stem=(6,)
        ),
        decoder=DecoderConfig(
            width=22, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=26, vocab=300, tied=True
        ),
        shuffle=2,
        image_token_id=1,
    ),
    expert=ExpertConfig(width=18, mlp_dim=30, num_layers=2),
    state_dim=5,
    action_dim=3,
    chunk=7,
    num_steps=4,
)
VARIANTS = {
    "interleaved": TINY_VLA,
    "cross": replace(TINY_VLA, expert=replace(TINY_VLA.expert, attention="cross")),
    "self, one layer": replace(TINY_VLA, expert=replace(TINY_VLA.expert, attention="self", num_layers=1)),
    "marked images": replace(TINY_VLA, image_start=(3, 4), image_end=(5,)),
    "heun": replace(TINY_VLA, solver="heun"),
}


def new_model(cfg: VLAConfig = TINY_VLA) -> VLA:
    """Weights under which everything matters."""
    model = VLA(cfg).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for value in model.parameters():
        spread = value.shape[-1] ** -0.5 if value.dim() > 1 else 0.3
        value.copy_(torch.randn(value.shape, generator=generator) * spread + (value.dim() == 1))
    return model


def observed(cfg: VLAConfig, batch: int, cameras: int, words: int = 6) -> Inputs:
    generator, side = torch.Generator().manual_seed(batch), cfg.vlm.vision.image_size
    lengths = torch.tensor([[words - row % 3] for row in range(batch)])
    return Inputs(
        pixels=torch.rand(batch, cameras, 3, side, side, generator=generator) * 2 - 1,
        ids=torch.randint(cfg.vlm.decoder.vocab, (batch, words), generator=generator),
        ids_valid=torch.arange(words) < lengths,
        state=torch.randn(batch, cfg.state_dim, generator=generator),
    )


def look(model: VLA, seen: Inputs) -> Reading:
    sights = model.see(seen.pixels.flatten(0, 1)).unflatten(0, seen.pixels.shape[:2])  # (B, N, tokens, C)
    return model.look(sights, seen.ids, seen.ids_valid)


@torch.inference_mode()
def act(model: VLA, seen: Inputs) -> Tensor:
    shape = (len(seen.ids), model.cfg.chunk, model.cfg.action_dim)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    return model.act_on(look(model, seen), seen.state, noise)
