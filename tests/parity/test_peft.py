"""What peft writes we read, what we write peft reads: logits and gradients at 1e-5, fp32."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel
from reference import build_reference, config
from torch import Tensor
from transformers import SmolVLMForConditionalGeneration

from tailorbird.checkpoint.peft import read_adapter, write_adapter
from tailorbird.checkpoint.smolvlm import vlm_rules
from tailorbird.checkpoint.table import affine, convert
from tailorbird.errors import CheckpointError
from tailorbird.model.build import build_model
from tailorbird.model.config import VLMConfig
from tailorbird.model.vlm import VLM
from tailorbird.train.config import VLM_TARGETS, LearnConfig, LoraConfig
from tailorbird.train.lora import adapter_of, attach, merge, merged_weights
from tailorbird.train.stages import choose

pytestmark = [  # peft still asks transformers by a name that is going away
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

CFG = config(tied=False, shuffle=3)
RULES = vlm_rules(CFG)
TOLERANCE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-5}
EVERYWHERE = [
    *(f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down", "out")),
    *("fc1", "fc2", "modality_projection.proj"),
]
SAVED = ["embed_tokens", "lm_head", "patch_embedding", "text_model.norm"]
KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {"target_modules": EVERYWHERE},
    "LoRA, of scale alpha by the root of rank": {"target_modules": ["q_proj", "fc2"], "use_rslora": True},
    "DoRA": {"target_modules": EVERYWHERE, "use_dora": True},
    "LoRA and whole modules": {"target_modules": ["v_proj"], "modules_to_save": SAVED},
    "DoRA and whole modules": {"target_modules": ["k_proj"], "modules_to_save": SAVED, "use_dora": True},
    "a target by expression": {"target_modules": r".*text_model.*\.[2]\..*(gate|o)_proj"},
}


def inputs() -> tuple[Tensor, Tensor]:
    """Ids (1, T) and two tiles."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 97, (1, 2 * CFG.tokens_per_image + 7), generator=generator)
    ids[0, 1 : 1 + CFG.tokens_per_image] = ids[0, -5 - CFG.tokens_per_image : -5] = CFG.image_token_id
    return ids, torch.rand(2, 3, 37, 37, generator=generator) * 2 - 1


def our_logits(model: VLM) -> Tensor:
    return model(*inputs())


def their_logits(model: PeftModel | SmolVLMForConditionalGeneration) -> Tensor:
    ids, pixels = inputs()
    return model(input_ids=ids, pixel_values=pixels[None], use_cache=False).logits


def new_ours(cfg: VLMConfig = CFG) -> VLM:
    model = build_model(cfg, "meta")
    weights = convert(build_reference(cfg, seed=0).state_dict(), vlm_rules(cfg))
    model.load_state_dict({name: value.clone() for name, value in weights.items()}, assign=True)
    assert isinstance(model, VLM)
    return model.eval()


def new_theirs(cfg: VLMConfig = CFG, **settings: Any) -> PeftModel:
    """After some learning, as it were: all that learns has moved."""
    asked = peft.LoraConfig(**{"r": 3, "lora_alpha": 5, "lora_dropout": 0.2, **settings})
    model = peft.get_peft_model(build_reference(cfg, seed=0), asked)
    shake(model)
    return model.eval()


@torch.no_grad()
def shake(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(4)
    for value in model.parameters():
        if value.requires_grad:
            value.add_(0.2 * torch.randn(value.shape, generator=generator))


def read(folder: Path) -> VLM:
    model = new_ours()
    attach(model, read_adapter(folder, RULES))
    return model


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_an_adapter_of_peft_gives_its_logits_attached_and_merged(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    theirs = new_theirs(**settings)
    theirs.save_pretrained(tmp_path)
    ours, expected = read(tmp_path), their_logits(theirs)
    assert (our_logits(new_ours()) - expected).abs().max() > 0.05
    torch.testing.assert_close(our_logits(ours), expected, **TOLERANCE)
    plain = new_ours()
    plain.load_state_dict(merged_weights(ours))
    torch.testing.assert_close(our_logits(plain), expected, **TOLERANCE)
    merge(ours)
    torch.testing.assert_close(our_logits(ours), expected, **TOLERANCE)


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
@pytest.mark.parametrize("whole", [(), ("decoder.embed", "head", "vision.patches", "*.norm_2")], ids=str)
def test_peft_loads_our_adapter_and_gives_our_logits(
    tmp_path: Path, dora: bool, whole: tuple[str, ...]
) -> None:
    targets = (*VLM_TARGETS, "vision.blocks.*", "connector.proj")
    ours = new_ours()
    lora = LoraConfig(rank=3, alpha=5.0, dora=dora, targets=targets, whole=whole)
    groups = choose(ours, LearnConfig(lora=lora), seed=2)
    shake(ours)
    adapter = adapter_of(ours, [name for group in groups for name in group.weights])
    assert adapter is not None
    write_adapter(tmp_path / "it", adapter, RULES, "me/base")
    theirs = PeftModel.from_pretrained(build_reference(CFG, seed=0), tmp_path / "it").eval()
    torch.testing.assert_close(their_logits(theirs), our_logits(ours), **TOLERANCE)
    torch.testing.assert_close(our_logits(read(tmp_path / "it")), our_logits(ours), rtol=0, atol=0)
    merged = theirs.merge_and_unload()
    plain = new_ours()
    plain.load_state_dict(convert(merged.state_dict(), RULES))
    torch.testing.assert_close(our_logits(plain), our_logits(ours), **TOLERANCE)


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
def test_the_gradients_of_an_adapter_are_those_of_peft(tmp_path: Path, dora: bool) -> None:
    theirs = new_theirs(target_modules=EVERYWHERE, use_dora=dora)
    theirs.save_pretrained(tmp_path)
    ours = read(tmp_path)
    for name, value in theirs.named_parameters():
        value.requires_grad_("lora_" in name)
    their_logits(theirs).square().mean().backward()
    our_logits(ours).square().mean().backward()
    for value in (*theirs.parameters(), *ours.parameters()):
        if value.requires_grad:
            assert value.grad is not None
            value.data = value.grad
    theirs.save_pretrained(tmp_path)
    expected, found = read_adapter(tmp_path, RULES), adapter_of(ours, ())
    assert found is not None
    assert found.updates.keys() == expected.updates.keys()
    for place, update in found.updates.items():
        torch.testing.assert_close(vars(update), vars(expected.updates[place]), **TOLERANCE)
        assert update.up.abs().max() > 1e-3


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
def test_dropout_leaves_out_of_the_update_what_it_does_with_peft(tmp_path: Path, dora: bool) -> None:
    def layer() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(7, 5))

    asked = peft.LoraConfig(r=3, lora_alpha=5, lora_dropout=0.4, target_modules=["0"], use_dora=dora)
    theirs, ours = peft.get_peft_model(layer(), asked), layer()
    shake(theirs)
    theirs.save_pretrained(tmp_path)
    attach(ours, read_adapter(tmp_path, affine("0", "0")))
    x, said = torch.randn(11, 7, generator=torch.Generator().manual_seed(1)), []
    for model in (theirs.train(), ours.train()):
        torch.manual_seed(2)
        said.append(model(x))
    torch.testing.assert_close(said[1], said[0], **TOLERANCE)
    assert (said[0] - theirs.eval()(x)).abs().max() > 0.1


def test_a_narrow_adapter_is_widened(tmp_path: Path) -> None:
    theirs = new_theirs(target_modules=["q_proj"]).bfloat16()
    theirs.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path, RULES)
    assert {update.down.dtype for update in adapter.updates.values()} == {torch.float32}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "biases": ({"bias": "lora_only"}, r"bias is 'lora_only'"),
    "a bias of its own": ({"lora_bias": True}, r"lora_bias is True"),
    "several ranks": ({"rank_pattern": {"fc1": 2}}, r"rank_pattern is \{'fc1': 2\}"),
    "a start that changes the weights": ({"init_lora_weights": "pissa"}, r"init_lora_weights is 'pissa'"),
    "words": (
        {"target_modules": ["embed_tokens", "fc1"]},
        r"has 3 tensors that are neither weights .*embed_tokens",
    ),
    "patches": ({"target_modules": ["patch_embedding", "fc1"]}, r"no update of a linear layer by rank 3"),
    "a third of one weight": ({"modules_to_save": ["q_proj"]}, r"q_proj\.weight without .*k_proj\.weight"),
    "some rows": ({"trainable_token_indices": [3]}, r"trainable_token_indices is \[3\]"),
}


@pytest.mark.filterwarnings("ignore:.*save_embedding_layers", "ignore:.*have invalid shape.*lora_B.bias")
@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
def test_what_we_cannot_represent_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    given = {"target_modules": ["fc1"], **settings}
    new_theirs(**given).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_adapter(tmp_path, RULES)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*tie.*")
def test_a_weight_with_two_names_learns_in_neither_direction(tmp_path: Path) -> None:
    cfg = config(tied=True, shuffle=3)
    rules = vlm_rules(cfg)
    new_theirs(cfg, target_modules=["fc1"], modules_to_save=["embed_tokens"]).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight and .* are one weight .*Merge the adapter"):
        read_adapter(tmp_path, rules)
    ours = new_ours(cfg)
    lora = LoraConfig(rank=3, targets=("decoder.*.down",), whole=("decoder.embed",))
    groups = choose(ours, LearnConfig(lora=lora), seed=2)
    adapter = adapter_of(ours, [name for group in groups for name in group.weights])
    assert adapter is not None
    with pytest.raises(CheckpointError, match=r"cannot write .*lm_head\.weight and .* are one weight"):
        write_adapter(tmp_path / "it", adapter, rules, "me/base")


def test_an_adapter_of_another_model_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    new_theirs(target_modules=["fc1"], modules_to_save=["connector"]).save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path, RULES)
    other = replace(CFG, vision=replace(CFG.vision, mlp_dim=41))
    model = new_ours(other)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match=r"first: vision\.blocks\.0\.up\. It belongs to another model"):
        attach(model, adapter)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_broken_settings_are_named(tmp_path: Path) -> None:
    new_theirs(target_modules=["fc1"]).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    good = json.loads(path.read_text())
    wrong = {"r": 0, "lora_alpha": -1, "lora_dropout": 1.0, "peft_type": "IA3", "r ": 3}
    for name, value in wrong.items():
        path.write_text(json.dumps({**good, name: value}))
        with pytest.raises(CheckpointError, match=rf"adapter_config\.json: {name} is"):
            read_adapter(tmp_path, RULES)
    path.write_text(json.dumps({**good, "r": 4}))
    with pytest.raises(CheckpointError, match=r"no update of a linear layer by rank 4"):
        read_adapter(tmp_path, RULES)
