"""Small models with all sizes distinct, so that a swapped axis cannot go unnoticed."""

from dataclasses import replace

import pytest
import torch

from tailorbird.model.build import build_model
from tailorbird.model.config import DecoderConfig, ExpertConfig, VisionConfig, VLAConfig, VLMConfig
from tailorbird.model.init import initialise
from tailorbird.model.vla import VLA
from tailorbird.types import Inputs

LENGTHS = (6, 4, 2)  # words of the three instructions


@pytest.fixture
def vision_config() -> VisionConfig:
    return VisionConfig(image_size=24, patch_size=4, width=10, num_layers=2, num_heads=2, mlp_dim=14)


@pytest.fixture
def decoder_config() -> DecoderConfig:
    return DecoderConfig(
        width=22, num_layers=4, num_heads=6, num_kv_heads=3, head_dim=8, mlp_dim=26, vocab=53, tied=True
    )


@pytest.fixture
def vlm_config(vision_config: VisionConfig, decoder_config: DecoderConfig) -> VLMConfig:
    return VLMConfig(vision=vision_config, decoder=decoder_config, shuffle=3, image_token_id=1)


@pytest.fixture
def vla_config(vlm_config: VLMConfig) -> VLAConfig:
    expert = ExpertConfig(width=18, mlp_dim=30, num_layers=4)
    return VLAConfig(vlm=vlm_config, expert=expert, state_dim=5, action_dim=3, chunk=7, num_steps=4)


def build(cfg: VLAConfig, seed: int = 0) -> VLA:
    model = build_model(cfg)
    assert isinstance(model, VLA)
    initialise(model, seed)
    return model


@pytest.fixture
def vla(vla_config: VLAConfig) -> VLA:
    return build(vla_config)


@pytest.fixture
def open_vla(vla_config: VLAConfig) -> VLA:
    """Its expert reads the decoder's keys and values as they are, so the prefix can be looked at."""
    return build(replace(vla_config, expert=replace(vla_config.expert, attention="self")))


@pytest.fixture
def seen() -> Inputs:
    """Three observations of two cameras, with six, four and two words."""
    return Inputs(
        pixels=torch.rand(3, 2, 3, 24, 24) * 2 - 1,
        ids=torch.randint(2, 53, (3, 6)),
        ids_valid=torch.arange(6) < torch.tensor(LENGTHS)[:, None],
        state=torch.randn(3, 5),
    )
