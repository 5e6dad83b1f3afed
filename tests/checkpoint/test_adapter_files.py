"""Adapters as files: what is written comes back, and what is damaged is named."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tailorbird.checkpoint.peft import Adapter, read_adapter, write_adapter
from tailorbird.checkpoint.smolvla import vla_rules
from tailorbird.errors import CheckpointError
from tailorbird.train.config import SMALL_TARGETS, LoraConfig
from tailorbird.train.lora import adapt, adapter_of
from tiny import TINY_VLA, new_model

RULES = vla_rules(TINY_VLA)
KEY = "base_model.model.model.action_in_proj.lora_B.weight"


def made() -> Adapter:
    """Of a policy: queries and values of the expert, whatever they are joined with, and what is around it."""
    model = new_model()
    targets = ("expert.*.query", "expert.*.value", *SMALL_TARGETS)
    adapt(model, LoraConfig(rank=3, alpha=5.0, dropout=0.25, dora=True, targets=targets), seed=0)
    generator = torch.Generator().manual_seed(1)
    for value in model.parameters():
        if value.requires_grad:
            value.data += torch.randn(value.shape, generator=generator)
    adapter = adapter_of(model, ["expert.norm.weight"])
    assert adapter is not None
    return adapter


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "it", made(), RULES, "me/policy")
    return tmp_path / "it"


def test_the_adapter_of_a_policy_comes_back_bit_for_bit(folder: Path) -> None:
    expected, found = made(), read_adapter(folder, RULES)
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert (found.rank, found.alpha, found.dropout, found.dora) == (3, 5.0, 0.25, True)
    assert found.updates.keys() == expected.updates.keys()
    for place, update in expected.updates.items():
        torch.testing.assert_close(vars(found.updates[place]), vars(update), rtol=0, atol=0)
    torch.testing.assert_close(found.whole, expected.whole, rtol=0, atol=0)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def without(path: Path) -> None:
    tensors = load_file(path)
    del tensors[KEY]
    save_file(tensors, path)


def renamed(path: Path) -> None:
    tensors = {key.replace("action_in_proj", "action_proj"): value for key, value in load_file(path).items()}
    save_file(tensors, path)


def whole_numbers(path: Path) -> None:
    save_file({**load_file(path), KEY: torch.ones(18, 3, dtype=torch.int32)}, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Path.unlink, r"is missing"),
        (cut, r"is damaged"),
        (without, r"model\.action_in_proj has \['\.lora_A\.weight', .* should have .*again"),
        (renamed, r"changes model\.action_proj, which the model has not"),
        (whole_numbers, r"action_in_proj\.lora_B\.weight \(I32\)"),
    ],
    ids=["missing", "cut", "a factor missing", "an unknown layer", "no floats"],
)
def test_weights_that_are_not_whole_are_refused_by_name(
    folder: Path, change: Callable[[Path], None], message: str
) -> None:
    change(folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=message) as caught:
        read_adapter(folder, RULES)
    assert str(folder) in str(caught.value)


def test_an_adapter_that_cannot_be_written_leaves_the_old_one(folder: Path) -> None:
    before = (folder / "adapter_model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="peft has no layer for the rows of Place"):
        write_adapter(folder, made(), [], "me/policy")
    assert (folder / "adapter_model.safetensors").read_bytes() == before
