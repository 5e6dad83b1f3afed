"""SmolVLA at its released size, with random weights, against lerobot's: `make full`. Needs 3 GB of memory."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_smolvla import build_pair, correlation, make_scene, narrow_policy

from released import END_ID, GOLDEN, IMAGE_ID, make_processor, read_shapes
from tailorbird.checkpoint.processor import processor_files
from tailorbird.checkpoint.released import released_config
from tailorbird.model.sizes import SMOLVLA_BASE, SMOLVLM2_500M
from tailorbird.model.vla import VLA
from tailorbird.storage import write_json

pytestmark = [pytest.mark.parity, pytest.mark.full]

STEPS = 3


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, VLA]:
    """lerobot asks a VLM's folder for sizes and words only."""
    folder, vlm = tmp_path_factory.mktemp("vlm"), replace(SMOLVLM2_500M, image_token_id=IMAGE_ID)
    config = released_config(vlm, pad_id=2, end_ids=frozenset({END_ID}), dtype="float32")
    for name, content in {"config.json": config, **processor_files(make_processor(vlm), vlm)}.items():
        if isinstance(content, str):
            (folder / name).write_text(content, encoding="utf-8")
        else:
            write_json(folder / name, content)
    return build_pair(
        folder,
        SMOLVLM2_500M,
        num_vlm_layers=16,
        num_steps=STEPS,
        action=32,
        **{"chunk_size": 50, "n_action_steps": 50, "max_state_dim": 32, "max_action_dim": 32},
    )


def test_the_reference_has_the_names_and_shapes_of_the_release_and_its_configuration_is_ours(
    pair: tuple[Any, VLA],
) -> None:
    policy, model = pair
    released = read_shapes(GOLDEN / "smolvla-base.txt")
    assert {key: tuple(value.shape) for key, value in policy.state_dict().items()} == released
    assert model.cfg == replace(SMOLVLA_BASE, num_steps=STEPS)


def test_the_actions_are_those_of_the_reference_in_fp32_and_correlate_in_the_dtypes_of_the_release(
    pair: tuple[Any, VLA],
) -> None:
    policy, model = pair
    scene = make_scene(model.cfg, cameras=1, batch=1)
    expected, exact = policy.predict_action_chunk(scene.theirs, noise=scene.noise), scene.act(model)
    apart = float((exact - expected).abs().max())
    print(f"fp32: actions up to {float(expected.abs().max()):.2f}, largest difference {apart:.1e}")
    torch.testing.assert_close(exact, expected, rtol=1e-4, atol=1e-4)
    model.narrow(torch.bfloat16)
    narrow_policy(policy)
    expected, found = policy.predict_action_chunk(scene.theirs, noise=scene.noise), scene.act(model)
    found, expected, exact = (end - scene.noise for end in (found, expected, exact))  # the noise is shared
    figures = correlation(found, expected), correlation(found, exact), correlation(expected, exact)
    print("bf16: ours and theirs {:.6f}, ours and fp32 {:.6f}, theirs and fp32 {:.6f}".format(*figures))
    assert min(figures) >= 0.999
