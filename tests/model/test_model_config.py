"""Sizes: what cannot work is refused when it is written down, and what can is built on any device."""

import itertools
import subprocess
import sys
from contextlib import nullcontext
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
        ({"solver": "rk4"}, "no solver 'rk4': there are euler, heun, midpoint"),
        ({"min_period": 0.0}, "above 0"),
        ({"image_start": (5, 53)}, r"tokens \[53\] around an image"),
        ({"image_end": (-1,)}, r"tokens \[-1\] around an image"),
        ({"empty_images": -1}, "empty_images=-1 must be at least 0"),
    ],
)
def test_an_impossible_policy_network_is_refused(
    vla_config: VLAConfig, fields: dict[str, object], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        replace(vla_config, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "layers"),
    [
        ({"num_layers": 2, "self_attn_every": 2}, "expert layer 1 reads decoder layer 6"),
        ({"num_layers": 6, "self_attn_every": 4}, "expert layer 2 reads decoder layer 4"),
        ({"num_layers": 4, "self_attn_every": 3}, "expert layer 1 reads decoder layer 3"),
    ],
)
def test_an_expert_layer_that_would_cross_by_its_own_number_only_is_refused(
    vlm_config: VLMConfig, fields: dict[str, int], layers: str
) -> None:
    vlm = replace(vlm_config, decoder=replace(vlm_config.decoder, num_layers=12))
    with pytest.raises(ConfigError, match=f"{layers}.*self_attn_every=12"):
        VLAConfig(vlm=vlm, expert=ExpertConfig(**fields))
    for run in ({"self_attn_every": 12}, {"attention": "cross"}, {"attention": "self"}):
        VLAConfig(vlm=vlm, expert=ExpertConfig(**fields | run))  # type: ignore[arg-type]


def test_an_expert_is_refused_exactly_where_its_two_layer_numbers_disagree(vlm_config: VLMConfig) -> None:
    for num_layers, stride, every in itertools.product(range(1, 7), range(1, 7), range(1, 9)):
        vlm = replace(vlm_config, decoder=replace(vlm_config.decoder, num_layers=num_layers * stride))
        expert = ExpertConfig(num_layers=num_layers, self_attn_every=every)
        agree = all(expert.is_cross(layer) == expert.is_cross(layer * stride) for layer in range(num_layers))
        with nullcontext() if agree else pytest.raises(ConfigError, match="expert layer"):
            VLAConfig(vlm=vlm, expert=expert)


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
