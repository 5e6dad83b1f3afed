"""Sizes: what cannot work is refused when it is written down, and what can is built on any device."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from tailorbird.errors import ConfigError
from tailorbird.model.build import build_model
from tailorbird.model.config import DecoderConfig, ExpertConfig, VisionConfig, VLAConfig, VLMConfig
from tailorbird.model.sizes import SIZES
from tailorbird.model.vla import VLA
from tailorbird.model.vlm import VLM


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"image_size": 8, "patch_size": 16}, "smaller than one patch"),
        ({"width": 10, "num_heads": 4}, "multiple"),
        ({"patch_size": 6, "image_size": 24, "stem": (4, 8)}, "cannot be halved"),
        ({"patch_size": 8, "image_size": 28, "stem": (4,)}, "with a stem"),
    ],
)
def test_an_impossible_image_tower_is_refused(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        VisionConfig(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"num_heads": 9, "num_kv_heads": 2}, "multiple"), ({"head_dim": 7}, "even")],
)
def test_an_impossible_decoder_is_refused(fields: dict[str, int], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        DecoderConfig(**fields)  # type: ignore[arg-type]


def test_a_grid_that_does_not_fold_is_refused(vision_config: VisionConfig) -> None:
    with pytest.raises(ConfigError, match="6 patches"):
        VLMConfig(vision=vision_config, shuffle=4)


@pytest.mark.parametrize("token", [-1, 53])
def test_an_image_token_outside_the_vocabulary_is_refused(vlm_config: VLMConfig, token: int) -> None:
    with pytest.raises(ConfigError, match=r"image_token_id=.*(vocabulary of 53|at least 0)"):
        replace(vlm_config, image_token_id=token)


@pytest.mark.parametrize(
    ("fields", "reason"), [({"width": 7}, "half sines, half cosines"), ({"self_attn_every": 0}, "at least 1")]
)
def test_an_impossible_expert_is_refused(fields: dict[str, int], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        ExpertConfig(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"expert": ExpertConfig(num_layers=3)}, "4 decoder layers are not a multiple of 3"),
        ({"chunk": 0}, "chunk"),
        ({"num_steps": 0}, "num_steps"),
    ],
)
def test_an_impossible_policy_network_is_refused(
    vla_config: VLAConfig, fields: dict[str, object], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        replace(vla_config, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("stem", [(), (6,), (6, 8)])
def test_the_number_of_tokens_an_image_takes_is_known_before_building(
    vlm_config: VLMConfig, stem: tuple[int, ...]
) -> None:
    cfg = replace(vlm_config, vision=replace(vlm_config.vision, stem=stem))
    tokens = VLM(cfg).encode_images(torch.zeros(5, 3, 24, 24))
    assert tokens.shape == (5, cfg.tokens_per_image, 22)


@pytest.mark.parametrize("size", sorted(SIZES))
def test_every_size_is_built_on_the_meta_device_without_memory(size: str) -> None:
    model = build_model(SIZES[size], "meta")
    assert isinstance(model, VLA if isinstance(SIZES[size], VLAConfig) else VLM)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert not list(model.buffers())


def test_what_is_no_configuration_of_a_model_is_refused() -> None:
    with pytest.raises(AssertionError, match="VisionConfig"):
        build_model(VisionConfig())  # type: ignore[arg-type]


def test_a_model_built_on_meta_works_once_it_has_weights(vla_config: VLAConfig) -> None:
    here, there = build_model(vla_config), build_model(vla_config, "meta")
    there.load_state_dict(here.state_dict(), assign=True)
    pixels = torch.rand(2, 3, 24, 24)
    assert isinstance(here, VLA)
    assert isinstance(there, VLA)
    assert torch.equal(here.vlm.encode_images(pixels), there.vlm.encode_images(pixels))


def test_the_sizes_can_be_listed_without_loading_torch() -> None:
    code = "import sys, tailorbird.model.sizes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", ["num_heads", "num_kv_heads", "head_dim", "width", "vocab"])
@pytest.mark.parametrize("size", [0, -3])
def test_a_size_below_one_is_refused_by_name(name: str, size: int) -> None:
    with pytest.raises(ConfigError, match=f"DecoderConfig: {name}={size} must be at least 1"):
        DecoderConfig(**{name: size})
