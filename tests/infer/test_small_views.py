"""A policy may see its pictures smaller than it learned, in the way its image tower was made for."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lerobot_folder import make_pipeline, write_folder
from tailorbird.checkpoint.policy import read_policy, write_policy
from tailorbird.errors import ConfigError
from tailorbird.infer.policy import Policy, load_policy
from tailorbird.infer.views import shrink_views
from tailorbird.model.config import VisionConfig
from tailorbird.wire import Observation
from tiny import TINY_VLA, new_model

SEEN = Observation(
    images={
        name: np.random.default_rng(i).integers(0, 256, (40, 48, 3), np.uint8)
        for i, name in enumerate(("top", "image"))
    },
    state=np.array([0, 1, 2, 3, 4], np.float32),
    task="pick it up",
)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """Of pictures of 64 px, 16 x 16 patches."""
    loaded = load_policy(write_folder(tmp_path_factory.mktemp("policy") / "it"), device="cpu")
    vision = VisionConfig(image_size=64, patch_size=4, width=10, num_layers=1, num_heads=2, mlp_dim=14)
    vlm = replace(loaded.model.cfg.vlm, vision=vision, shuffle=2)
    model = new_model(replace(loaded.model.cfg, vlm=vlm))
    return Policy(
        model, replace(loaded.pipeline, image=replace(loaded.pipeline.image, size=64), lerobot=None)
    )


@pytest.mark.parametrize("px", [64, 32, 16])
def test_patches_of_smaller_pictures_stand_where_the_reference_puts_them(px: int) -> None:
    pytest.importorskip("transformers")
    from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig
    from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionEmbeddings

    vision = VisionConfig(image_size=64, patch_size=4, width=10, num_layers=1, num_heads=2, mlp_dim=14)
    model = new_model(replace(TINY_VLA, vlm=replace(TINY_VLA.vlm, vision=vision)))
    theirs = SmolVLMVisionEmbeddings(SmolVLMVisionConfig(hidden_size=10, image_size=64, patch_size=4))
    theirs.patch_embedding.load_state_dict(model.vlm.vision.patches.state_dict())
    theirs.position_embedding.load_state_dict(model.vlm.vision.positions.state_dict())
    pixels = torch.rand(2, 3, px, px) * 2 - 1
    expected = theirs(pixels, torch.ones(2, px // 4, px // 4, dtype=torch.bool))  # (2, P, 10)
    patches = model.vlm.vision.patches(pixels).flatten(2).transpose(1, 2)  # (2, P, 10)
    shrink_views(model, make_pipeline(), px)
    assert torch.equal(patches + model.vlm.vision.positions.weight, expected)
    assert model.see(pixels).shape == (2, (px // 8) ** 2, 22)


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_a_smaller_view_is_chosen_when_a_policy_is_loaded_and_saved_with_it(
    policy: Policy, tmp_path: Path, engine: str
) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    write_policy(tmp_path, policy.model.state_dict(), policy.model.cfg, policy.pipeline)
    noise = torch.zeros(1, 7, 11)
    small = load_policy(tmp_path, device="cpu", image_px=32, engine=engine)  # type: ignore[arg-type]
    (found,), (whole,) = small.act_batch([SEEN], noise), policy.act_batch([SEEN], noise)
    assert np.abs(found.actions - whole.actions).max() > 1e-3
    if engine == "torch":
        (tmp_path / "small").mkdir()
        write_policy(tmp_path / "small", small.model.state_dict(), small.model.cfg, small.pipeline)
        model, pipeline = read_policy(tmp_path / "small")
        assert pipeline.image.size == model.cfg.vlm.vision.image_size == 32
        assert np.array_equal(Policy(model, pipeline).act_batch([SEEN], noise)[0].actions, found.actions)


def test_only_sizes_that_divide_into_tokens_and_are_not_larger_are_taken(
    policy: Policy, tmp_path: Path
) -> None:
    write_policy(tmp_path, policy.model.state_dict(), policy.model.cfg, policy.pipeline)
    for px, reason in ((65, r"must be in \[1, 64\]"), (0, "must be in"), (3, "one patch"), (36, "divide")):
        with pytest.raises(ConfigError, match=reason):
            load_policy(tmp_path, device="cpu", image_px=px)
    same = load_policy(tmp_path, device="cpu", image_px=64)
    assert torch.equal(same.model.vlm.vision.positions.weight, policy.model.vlm.vision.positions.weight)
