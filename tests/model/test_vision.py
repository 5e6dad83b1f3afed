"""Image tower and connector."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tailorbird.model.config import VisionConfig
from tailorbird.model.connector import Connector, pixel_shuffle
from tailorbird.model.vision import Vision, VisionAttention


@pytest.mark.parametrize("stem", [(), (6,), (6, 8)])
def test_a_picture_becomes_one_token_a_patch_with_and_without_a_stem(
    vision_config: VisionConfig, stem: tuple[int, ...]
) -> None:
    vision = Vision(replace(vision_config, stem=stem))
    pixels = torch.randn(5, 3, 24, 24)
    tokens = vision(pixels)
    assert tokens.shape == (5, 36, 10)
    torch.testing.assert_close(vision(pixels[2:3]), tokens[2:3], rtol=1e-5, atol=1e-5)


def test_patches_are_counted_row_by_row(vision_config: VisionConfig) -> None:
    vision = Vision(vision_config)
    vision.blocks = nn.ModuleList()  # they would mix the patches
    pixels = torch.zeros(1, 3, 24, 24)
    before = vision(pixels)
    pixels[0, :, 9, 21] = 1.0  # patch row 2, column 5
    moved = (vision(pixels) - before).abs().amax(-1)[0]
    assert moved.nonzero().flatten().tolist() == [2 * 6 + 5]


def test_a_rim_narrower_than_a_patch_is_not_seen(vision_config: VisionConfig) -> None:
    vision = Vision(replace(vision_config, image_size=26))
    pixels = torch.randn(1, 3, 26, 26)
    changed = pixels.clone()
    changed[..., 24:, :], changed[..., 24:] = 9.0, 9.0
    assert torch.equal(vision(pixels), vision(changed))
    changed[..., 23, 23] = 9.0
    assert not torch.equal(vision(pixels), vision(changed))


def test_without_positions_shuffled_patches_give_shuffled_tokens(vision_config: VisionConfig) -> None:
    vision = Vision(vision_config)
    nn.init.zeros_(vision.positions.weight)
    order = torch.randperm(36)
    patches = torch.randn(36, 3, 4, 4)

    def tokens(parts: torch.Tensor) -> torch.Tensor:
        return vision(parts.unflatten(0, (6, 6)).permute(2, 0, 3, 1, 4).reshape(1, 3, 24, 24))[0]

    torch.testing.assert_close(tokens(patches[order]), tokens(patches)[order], rtol=1e-4, atol=1e-5)
    nn.init.normal_(vision.positions.weight)
    assert not torch.allclose(tokens(patches[order]), tokens(patches)[order], atol=1e-2)


def test_every_patch_attends_as_pytorchs_own_attention_does(vision_config: VisionConfig) -> None:
    ours, theirs = VisionAttention(vision_config), nn.MultiheadAttention(10, 2, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.out.weight,
            "out_proj.bias": ours.out.bias,
        }
    )
    x = torch.randn(3, 7, 10)
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_pixel_shuffle_equals_a_slow_loop(factor: int) -> None:
    side, width = 6, 5
    x = torch.arange(2 * side * side * width).float().reshape(2, side * side, width)
    shuffled = pixel_shuffle(x, factor)
    blocks = side // factor
    assert shuffled.shape == (2, blocks * blocks, width * factor * factor)
    for n in range(2):
        for row in range(side):
            for column in range(side):
                token = (row // factor) * blocks + column // factor
                place = ((row % factor) * factor + column % factor) * width
                part = shuffled[n, token, place : place + width]
                assert torch.equal(part, x[n, row * side + column])


def test_the_connector_projects_each_folded_block() -> None:
    connector, x = Connector(10, 22, 3), torch.randn(2, 36, 10)
    tokens = connector(x)
    assert tokens.shape == (2, 4, 22)
    second = torch.cat([x[1, row * 6 + column] for row in range(3) for column in range(3, 6)])  # top right
    torch.testing.assert_close(tokens[1, 1], connector.proj.weight @ second, rtol=1e-5, atol=1e-5)
