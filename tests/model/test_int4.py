"""Weights of 16 levels."""

import pytest
import torch
from torch import nn

from tailorbird.model.int4 import GROUP, Int4Linear, to_int4


def test_weights_on_the_levels_are_kept_exactly() -> None:
    levels = torch.randint(-8, 8, (5, 3, GROUP), generator=torch.Generator().manual_seed(0))
    levels[..., 0] = -8  # the largest of each group
    scale = torch.tensor([0.5, 2.0, -0.25])[:, None]
    weight, found = to_int4((levels * scale).flatten(1))
    assert weight.dtype == torch.int8
    assert torch.equal(weight.long(), levels)
    assert torch.equal(found, scale.expand(5, 3, 1))


def test_no_weight_moves_by_more_than_a_step_and_most_by_half_of_one() -> None:
    weight = torch.randn(7, 4 * GROUP, generator=torch.Generator().manual_seed(1))
    levels, scale = to_int4(weight)
    moved = ((levels * scale).flatten(1) - weight).abs().unflatten(1, (-1, GROUP)) / scale.abs()
    assert levels.min() == -8
    assert levels.max() == 7
    assert moved.max() <= 1  # 7 is the end on the other side of -8
    assert (moved <= 0.5001).float().mean() > 0.98


def test_a_group_of_zeros_stays_zero() -> None:
    levels, scale = to_int4(torch.zeros(2, GROUP))
    assert torch.equal(levels * scale, torch.zeros(2, 1, GROUP))


@pytest.mark.parametrize("bias", [False, True])
def test_the_layer_multiplies_by_its_levels(bias: bool) -> None:
    layer = nn.Linear(2 * GROUP, 3, bias=bias)
    x = torch.randn(4, 2 * GROUP, generator=torch.Generator().manual_seed(2))
    levels, scale = to_int4(layer.weight)
    expected = nn.functional.linear(x, (levels * scale).flatten(1), layer.bias)
    assert torch.equal(Int4Linear(layer)(x), expected)
