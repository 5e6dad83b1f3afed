"""config.json of released models."""

import json
from pathlib import Path
from typing import Any

import pytest

from tailorbird.checkpoint.released import released_config, vlm_config
from tailorbird.errors import CheckpointError
from tailorbird.model.config import VisionConfig, VLMConfig
from tailorbird.model.sizes import SIZES, SMOLVLM_V1
from tiny import TINY_VLA

GOLDEN = Path(__file__).parent.parent / "golden"
RELEASED = ("smolvlm2-256m", "smolvlm2-500m", "smolvlm2-2.2b")
V1 = {  # the fields of SmolVLM-Instruct, among them those of an architecture that it was tried with
    "architectures": ["Idefics3ForConditionalGeneration"],
    "image_seq_len": 81,
    "image_token_id": 49153,
    "model_type": "idefics3",
    "scale_factor": 3,
    "text_config": {
        "_flash_attn_2_enabled": True,
        "architectures": ["VLlama3ForCausalLM"],
        "head_dim": 64,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "is_llama_config": True,
        "max_position_embeddings": 16384,
        "model_type": "llama",
        "neftune_noise_alpha": 0.0,
        "num_hidden_layers": 24,
        "pad_token_id": 2,
        "perceiver_config": {"attention_dropout": 0.0, "model_type": "vllama3", "resampler_depth": 6},
        "pixel_shuffle_factor": 3,
        "qk_layer_norms": False,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 273768.0,
        "torch_dtype": "bfloat16",
        "use_resampler": False,
        "vocab_size": 49155,
    },
    "tie_word_embeddings": False,
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 384,
        "intermediate_size": 4304,
        "max_image_size": {"longest_edge": 384},
        "model_type": "idefics3",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "tie_word_embeddings": False,
        "use_base_siglip": True,
    },
    "vocab_size": 49155,
}


def golden(size: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"{size}-config.json").read_text())


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("size", RELEASED)
def test_a_released_config_is_the_size_of_that_name(size: str) -> None:
    config = golden(size)
    assert config["pad_token_id"] == 128002, "beyond the vocabulary, and not read"
    assert vlm_config(config, size) == SIZES[size]


def test_the_first_smolvlm_is_its_size_whatever_else_its_config_says() -> None:
    assert vlm_config(V1, "v1") == SMOLVLM_V1


@pytest.mark.parametrize("size", [*RELEASED, "smolvlm-instruct"])
def test_our_config_reads_back_as_the_same_model(size: str) -> None:
    cfg = SIZES[size]
    assert isinstance(cfg, VLMConfig)
    written = released_config(cfg, pad_id=2, end_ids=frozenset({7, 5}), dtype="bfloat16")
    assert written["text_config"]["eos_token_id"] == [5, 7]
    assert vlm_config(json.loads(json.dumps(written)), size) == cfg


def test_an_image_tower_with_a_stem_has_no_released_form() -> None:
    with pytest.raises(CheckpointError, match=r"stem of \(6,\) has no released form: save it as a policy"):
        released_config(TINY_VLA.vlm, pad_id=0, end_ids=frozenset({1}), dtype="float32")


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("", {"model_type": "llama"}, r"model of type 'llama', and smolvlm and idefics3 are read"),
        ("", {"model_type": None}, r"model of type None"),
        (
            "",
            {"scale_factor": 3},
            r"a grid of 32 patches .* does not divide by self\.shuffle=3\. Use the config",
        ),
        ("", {"scale_factor": "4"}, r"x/config\.json: scale_factor is '4' and should be a whole number"),
        ("", {"scale_factor": 0}, r"shuffle=0 must be at least 1"),
        ("", {"image_token_id": 50000}, r"image_token_id=50000 is outside the vocabulary of 49280"),
        ("", {"tie_word_embeddings": 1}, r"tie_word_embeddings is 1 and should be true or false"),
        ("", {"quantization_config": {"bits": 4}}, r"quantization_config is .* all that is supported"),
        ("", {"vision_config": [3]}, r"vision_config is \[3\] and should be the fields of an object"),
        (
            "vision_config",
            {"hidden_act": "gelu"},
            r"vision_config\.hidden_act is 'gelu' .*'gelu_pytorch_tanh'",
        ),
        ("vision_config", {"num_channels": 1}, r"vision_config\.num_channels is 1 and should be 3"),
        ("vision_config", {"image_size": [512, 384]}, r"image_size is \[512, 384\] .*square"),
        ("vision_config", {"patch_size": [16, 8]}, r"patch_size is \[16, 8\] .*square"),
        ("vision_config", {"num_attention_heads": 7}, r"num_heads=7"),
        ("vision_config", {"layer_norm_eps": 0}, r"layer_norm_eps is 0 and should be a positive number"),
        ("text_config", {"model_type": "mistral"}, r"text_config\.model_type is 'mistral' .*'llama'"),
        ("text_config", {"hidden_act": "gelu"}, r"text_config\.hidden_act is 'gelu' and should be 'silu'"),
        (
            "text_config",
            {"attention_bias": True},
            r"attention_bias is True and should be False, which is all",
        ),
        ("text_config", {"mlp_bias": True}, r"mlp_bias is True"),
        ("text_config", {"qk_layer_norms": True}, r"qk_layer_norms is True"),
        ("text_config", {"use_resampler": True}, r"use_resampler is True"),
        ("text_config", {"partial_rotary_factor": 0.5}, r"partial_rotary_factor is 0\.5"),
        ("text_config", {"rope_scaling": {"type": "linear", "factor": 2}}, r"rope_scaling .*'default'"),
        ("text_config", {"rope_parameters": {"rope_type": "yarn"}}, r"rope_parameters .*'default'"),
        ("text_config", {"rope_parameters": {"rope_theta": True}}, r"rope_parameters\.rope_theta is True"),
        ("text_config", {"rope_theta": "high"}, r"text_config\.rope_theta is 'high'"),
        (
            "text_config",
            {"hidden_size": 100, "head_dim": None},
            r"hidden_size is 100 .*num_attention_heads=9",
        ),
        ("text_config", {"num_attention_heads": 0}, r"num_attention_heads is 0"),
        ("text_config", {"num_key_value_heads": 4}, r"num_kv_heads=4"),
        ("text_config", {"num_hidden_layers": 30.0}, r"num_hidden_layers is 30\.0 .*whole number"),
        ("text_config", {"hidden_size": 2**28 + 1}, r"hidden_size is 268435457 .*whole number up to 2\^28"),
        ("vision_config", {"image_size": 10**30}, r"image_size is 10+ .*whole number up to 2\^28"),
        ("", {"image_token_id": 10**30}, r"image_token_id is 10+ .*whole number up to 2\^28"),
        ("text_config", {"rms_norm_eps": float("inf")}, r"rms_norm_eps is inf .*positive number"),
        ("text_config", {"rms_norm_eps": float("nan")}, r"rms_norm_eps is nan .*positive number"),
        ("text_config", {"rope_theta": 10**400}, r"rope_theta is 10+\.\.\.0+ .*positive number"),
        ("text_config", {"hidden_act": nested(600)}, r"hidden_act is \[{7}\.\.\.\]{7} and"),
        ("text_config", {"hidden_act": "x" * 10**6}, r"hidden_act is 'x+\.\.\.x+' and"),
    ],
)
def test_what_is_not_supported_is_named_with_its_file(
    part: str, changes: dict[str, Any], message: str
) -> None:
    config = golden("smolvlm2-256m")
    (config[part] if part else config).update(changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        vlm_config(config, "x/config.json")
    assert str(caught.value).startswith("x/config.json")
    assert "\n" not in str(caught.value)


def test_a_tower_that_sees_a_rim_less_is_read() -> None:
    config = golden("smolvlm2-256m")
    config["vision_config"] |= {"image_size": 384, "patch_size": 16}
    config["scale_factor"] = 3
    assert vlm_config(config, "x").vision == VisionConfig(image_size=384)
