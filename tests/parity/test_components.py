"""Image towers and language models as transformers saves them, with random weights in fp32: 1e-5."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tailorbird.checkpoint.components import read_text, read_vision, text_config, vision_config
from tailorbird.checkpoint.folder import model_kind
from tailorbird.errors import CheckpointError
from tailorbird.model.config import VisionConfig

pytestmark = pytest.mark.parity

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 37,
    "patch_size": 6,
    "layer_norm_eps": 0.02,
}
TEXT = {
    "hidden_size": 36,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 101,
    "max_position_embeddings": 64,
    "rms_norm_eps": 0.03,
    "pad_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def randomised(model: nn.Module) -> Any:
    """Large weights, norms and biases too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            std = value[0].numel() ** -0.5 if value.dim() > 1 else 0.2
            mean = float("norm" in name and name.endswith("weight"))
            value.normal_(mean=mean, std=std, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def siglip() -> SiglipModel:
    words = SiglipTextConfig(
        hidden_size=24,
        intermediate_size=28,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=50,
        max_position_embeddings=16,
        bos_token_id=1,
        eos_token_id=2,
    )
    config = SiglipConfig(text_config=words, vision_config=SiglipVisionConfig(**VISION))
    return randomised(SiglipModel(config))


def pictures(size: int) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def require_equal_tower(folder: Path, reference: nn.Module) -> None:
    tower, cfg = read_vision(folder)
    assert cfg == VisionConfig(
        image_size=37, patch_size=6, width=24, num_layers=2, num_heads=3, mlp_dim=40, norm_eps=0.02
    )
    with torch.inference_mode():
        expected = reference(pictures(37)).last_hidden_state
        torch.testing.assert_close(tower(pictures(37)), expected, **TOLERANCE)


def test_the_image_tower_of_a_whole_siglip_is_that_of_the_reference(
    siglip: SiglipModel, tmp_path: Path
) -> None:
    siglip.save_pretrained(tmp_path)
    require_equal_tower(tmp_path, siglip.vision_model)


@pytest.mark.parametrize("use_head", [True, False], ids=["with its pooling head", "without a head"])
def test_an_image_tower_saved_alone_is_that_of_the_reference(use_head: bool, tmp_path: Path) -> None:
    reference = randomised(SiglipVisionModel(SiglipVisionConfig(**VISION, vision_use_head=use_head)))
    reference.save_pretrained(tmp_path)
    require_equal_tower(tmp_path, reference)
    file = tmp_path / "model.safetensors"  # libraries before 5 saved the names with this prefix
    save_file({f"vision_model.{name}": value for name, value in load_file(file).items()}, file)
    require_equal_tower(tmp_path, reference)


def test_what_a_siglip_file_leaves_out_is_siglip_base(tmp_path: Path) -> None:
    config = SiglipConfig(vision_config={"image_size": 512})
    sizes = config.vision_config
    ours = vision_config({"model_type": "siglip", "vision_config": {"image_size": 512}}, "config.json")
    assert ours == VisionConfig()
    assert (ours.width, ours.mlp_dim, ours.num_layers) == (
        sizes.hidden_size,
        sizes.intermediate_size,
        sizes.num_hidden_layers,
    )
    assert (ours.num_heads, ours.patch_size, ours.norm_eps) == (
        sizes.num_attention_heads,
        sizes.patch_size,
        sizes.layer_norm_eps,
    )


@pytest.mark.parametrize("tied", [True, False], ids=["tied head", "own head"])
@torch.inference_mode()
def test_a_language_model_is_that_of_the_reference(tied: bool, tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 5000.0}
    config = LlamaConfig(**TEXT, rope_parameters=rope, tie_word_embeddings=tied)
    reference = randomised(LlamaForCausalLM(config))
    reference.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_text("{{ 1 }}")
    tower = read_text(tmp_path)
    assert (tower.template, tower.end_ids, tower.model.cfg.tied) == ("{{ 1 }}", {2}, tied)
    ids = torch.arange(22).view(2, 11) * 4
    torch.testing.assert_close(tower.model(ids), reference(ids).logits, **TOLERANCE)


def test_a_tied_head_may_be_in_the_file_a_second_time_but_not_another_one(tmp_path: Path) -> None:
    randomised(LlamaForCausalLM(LlamaConfig(**TEXT, tie_word_embeddings=True))).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    weights = load_file(tmp_path / "model.safetensors")
    head = weights["model.embed_tokens.weight"].clone()
    save_file({**weights, "lm_head.weight": head}, tmp_path / "model.safetensors")
    assert read_text(tmp_path).model.head is None
    save_file({**weights, "lm_head.weight": head + 1}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        read_text(tmp_path)


def test_old_and_new_names_of_the_rope_base_are_read() -> None:
    llama: dict[str, Any] = {"model_type": "llama", **TEXT}
    for rope in ({"rope_theta": 7.0, "rope_scaling": None}, {"rope_parameters": {"rope_theta": 7.0}}):
        assert text_config(llama | rope, "config.json").rope_theta == 7.0
    with pytest.raises(CheckpointError, match=r"rope_scaling is .*llama3.* should be of rope_type"):
        text_config(llama | {"rope_scaling": {"rope_type": "llama3"}}, "config.json")
    for half in ({"partial_rotary_factor": 0.5}, {"rope_parameters": {"partial_rotary_factor": 0.5}}):
        with pytest.raises(CheckpointError, match="is all that is supported"):
            text_config(llama | half, "config.json")


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """In bf16, with words of its own and no template."""
    reference = randomised(LlamaForCausalLM(LlamaConfig(**TEXT))).bfloat16()
    reference.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


def test_a_language_model_keeps_the_type_of_its_file_unless_another_is_asked_for(llama: Path) -> None:
    assert read_text(llama).model.decoder.embed.weight.dtype == torch.bfloat16
    whole = read_text(llama, dtype=torch.float32)
    assert whole.model.decoder.embed.weight.dtype == torch.float32
    assert whole.tokenizer == "{}"
    assert not whole.model.training


@pytest.mark.parametrize("name", ["chat_template.json", "tokenizer_config.json"])
@pytest.mark.parametrize("as_list", [False, True], ids=["alone", "one of several"])
def test_the_chat_template_of_a_language_model_is_found_wherever_it_is(
    llama: Path, name: str, as_list: bool
) -> None:
    assert read_text(llama).template == "", "a base model has none"
    several = [{"name": "tools", "template": "x"}, {"name": "default", "template": "{{ 1 }}"}]
    (llama / name).write_text(json.dumps({"chat_template": several if as_list else "{{ 1 }}"}))
    assert read_text(llama).template == "{{ 1 }}"


@pytest.mark.parametrize("template", [3, [], [{"name": "tools", "template": "x"}], ""])
def test_a_template_that_cannot_be_read_is_not_taken_for_none(llama: Path, template: object) -> None:
    (llama / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: chat_template is .*fetch it again"):
        read_text(llama)


@pytest.mark.parametrize("value", [101, -1, "2", [2, True]], ids=str)
def test_an_end_that_is_no_token_is_refused(llama: Path, value: object) -> None:
    (llama / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(CheckpointError, match=r"generation_config\.json: eos_token_id is .* none of 101"):
        read_text(llama)


def test_the_ends_of_a_language_model_may_be_none_or_several(llama: Path) -> None:
    for value, expected in ((None, {2}), ([2, 7], {2, 7}), ([], set())):
        (llama / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
        assert read_text(llama).end_ids == expected


def test_a_folder_says_what_kind_of_model_it_holds(llama: Path) -> None:
    assert model_kind(llama) == "llama"
    for config in ("{}", '{"model_type": ["llama"]}'):
        (llama / "config.json").write_text(config)
        with pytest.raises(CheckpointError, match=r"config\.json: model_type is .*name a folder"):
            model_kind(llama)
    (llama / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        model_kind(llama)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, r"whole number up to 2\^28"),
        ({"num_hidden_layers": 2**28}, r"too few for the 268435456 layers"),
        ({"head_dim": 2**28, "num_attention_heads": 2**28, "hidden_size": 2**28}, r"no model has such sizes"),
    ],
)
def test_a_language_model_without_end_is_refused_before_it_is_built(
    llama: Path, changes: dict[str, Any], message: str
) -> None:
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(CheckpointError, match=message):
        read_text(llama)


def test_null_heads_are_the_ones_of_the_reference() -> None:
    llama = {"model_type": "llama", **TEXT, "head_dim": None, "num_key_value_heads": None}
    cfg, reference = text_config(llama, "config.json"), LlamaConfig(**TEXT | {"head_dim": None})
    assert (cfg.head_dim, cfg.num_kv_heads) == (reference.head_dim, TEXT["num_attention_heads"])


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no kind": ({"model_type": ["siglip"]}, "describes a model of type ['siglip'], and siglip and"),
    "layers without end": (
        {"model_type": "siglip_vision_model", "num_hidden_layers": 10**9},
        "a whole number up to 2^28",
    ),
    "another kind": ({"model_type": "clip"}, "describes a model of type 'clip', and siglip and"),
    "another activation": (
        {"model_type": "siglip_vision_model", "hidden_act": "gelu"},
        "hidden_act is 'gelu'",
    ),
    "gray pictures": ({"model_type": "siglip_vision_model", "num_channels": 1}, "num_channels is 1"),
    "odd heads": (
        {"model_type": "siglip_vision_model", "num_attention_heads": 5},
        "must be a multiple of self.num_heads=5",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_image_tower_of_another_kind_is_refused_by_name(case: str, tmp_path: Path) -> None:
    config, expected = WRONG[case]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as caught:
        read_vision(tmp_path)
    assert expected in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_text_model_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(CheckpointError, match="describes a model of type 'qwen2', and 'llama' is read"):
        read_text(tmp_path)


def test_weights_that_do_not_fit_are_refused(siglip: SiglipModel, tmp_path: Path) -> None:
    siglip.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    extra = weights | {"vision_model.embeddings.extra": torch.ones(1)}
    save_file(extra, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"in no rule \['vision_model.embeddings.extra'\]"):
        read_vision(tmp_path)
    del weights["vision_model.post_layernorm.bias"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors .*post_layernorm.bias"):
        read_vision(tmp_path)
