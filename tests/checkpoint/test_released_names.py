"""Our tensors under the released names are the tensors of the released checkpoints, shape by shape."""

import pytest
import torch

from released import GOLDEN, read_shapes
from tailorbird.checkpoint.smolvla import vla_rules
from tailorbird.checkpoint.smolvlm import vlm_rules
from tailorbird.checkpoint.table import Rule, convert, revert
from tailorbird.model.build import build_model
from tailorbird.model.config import ModelConfig, VLAConfig
from tailorbird.model.sizes import SIZES

RELEASED = {"smolvlm2-256m": 471, "smolvlm2-500m": 489, "smolvlm2-2.2b": 657, "smolvla-base": 500}


def rules_for(cfg: ModelConfig) -> list[Rule]:
    return vla_rules(cfg) if isinstance(cfg, VLAConfig) else vlm_rules(cfg)


@pytest.mark.parametrize("size", RELEASED)
def test_the_golden_list_holds_every_tensor_of_the_release(size: str) -> None:
    assert len(read_shapes(GOLDEN / f"{size}.txt")) == RELEASED[size]


@pytest.mark.parametrize("size", RELEASED)
def test_our_tensors_get_the_released_names_and_shapes(size: str) -> None:
    theirs = revert(build_model(SIZES[size], "meta").state_dict(), rules_for(SIZES[size]))
    assert {key: tuple(value.shape) for key, value in theirs.items()} == read_shapes(GOLDEN / f"{size}.txt")


@pytest.mark.parametrize("size", RELEASED)
def test_the_released_tensors_get_our_names_and_shapes(size: str) -> None:
    released = read_shapes(GOLDEN / f"{size}.txt")
    ours = convert(
        {key: torch.empty(shape, device="meta") for key, shape in released.items()}, rules_for(SIZES[size])
    )
    expected = build_model(SIZES[size], "meta").state_dict()
    assert {name: value.shape for name, value in ours.items()} == {n: v.shape for n, v in expected.items()}
