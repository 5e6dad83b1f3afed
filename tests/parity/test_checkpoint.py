"""Folders that transformers writes are read, folders that we write transformers reads: logits at 1e-5."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from reference import build_reference
from torch import Tensor
from transformers import (
    AutoTokenizer,
    Idefics3Config,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from released import CFG, END_ID, make_processor, variant, write_released
from tailorbird.checkpoint.processor import processor_files
from tailorbird.checkpoint.released import released_config, vlm_config
from tailorbird.checkpoint.vlm import load_model, read_vlm
from tailorbird.errors import CheckpointError
from tailorbird.model.cache import DenseCache
from tailorbird.model.config import VLMConfig
from tailorbird.model.sizes import SMOLVLM2_256M
from tailorbird.model.vlm import VLM

pytestmark = pytest.mark.parity

TOLERANCE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-5}
VARIANTS = {
    "as released": variant(),
    "tied head": variant(tied=True),
    "blocks of 3 x 3 patches": variant(shuffle=3),
    "blocks of 4 x 4 patches, a key head per query head": variant(shuffle=4, num_kv_heads=6, side=50),
}


def inputs(cfg: VLMConfig) -> tuple[Tensor, Tensor]:
    """Ids (1, T) and two tiles."""
    generator = torch.Generator().manual_seed(1)
    side = cfg.vision.image_size
    ids = torch.randint(20, cfg.decoder.vocab, (1, 2 * cfg.tokens_per_image + 9), generator=generator)
    ids[0, 2 : 2 + cfg.tokens_per_image] = ids[0, -3 - cfg.tokens_per_image : -3] = cfg.image_token_id
    return ids, torch.rand(2, 3, side, side, generator=generator) * 2 - 1


@torch.inference_mode()
def assert_same(ours: VLM, theirs: SmolVLMForConditionalGeneration) -> None:
    ids, pixels = inputs(ours.cfg)
    expected = theirs(input_ids=ids, pixel_values=pixels[None], use_cache=False).logits
    torch.testing.assert_close(ours(ids, pixels), expected, **TOLERANCE)


def settle(folder: Path, cfg: VLMConfig) -> None:
    """What save_pretrained of a model leaves out."""
    for name, content in processor_files(make_processor(cfg), cfg).items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize("shard_size", ["50GB", "40KB"], ids=["one file", "shards"])
@pytest.mark.parametrize("cfg", VARIANTS.values(), ids=VARIANTS)
def test_a_folder_that_the_reference_wrote_gives_its_logits(
    tmp_path: Path, cfg: VLMConfig, shard_size: str
) -> None:
    theirs = build_reference(cfg, seed=0)
    theirs.save_pretrained(tmp_path, max_shard_size=shard_size)
    settle(tmp_path, cfg)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard_size == "40KB")
    found = read_vlm(tmp_path)
    assert found.model.cfg == cfg
    assert found.end_ids == {1}, "as build_reference has it"
    assert_same(found.model, theirs)


def test_old_spellings_of_a_config_give_the_same_logits(tmp_path: Path) -> None:
    theirs = build_reference(CFG, seed=0)
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    text = config["text_config"]
    text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
    text |= {
        "rope_scaling": None,
        "qk_layer_norms": False,
        "pixel_shuffle_factor": 2,
        "is_llama_config": True,
    }
    config |= {"model_type": "idefics3", "pad_token_id": 128002, "torch_dtype": config.pop("dtype")}
    config["vision_config"] |= {"model_type": "idefics3", "max_image_size": {"longest_edge": 37}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    settle(tmp_path, CFG)
    assert_same(read_vlm(tmp_path).model, theirs)


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 30_000], ids=["one file", "shards"])
@pytest.mark.parametrize("cfg", VARIANTS.values(), ids=VARIANTS)
def test_the_reference_loads_our_folder_whole_and_gives_our_logits(
    tmp_path: Path, cfg: VLMConfig, shard_bytes: int
) -> None:
    ours = write_released(tmp_path / "it", cfg, shard_bytes=shard_bytes)
    theirs, report = SmolVLMForConditionalGeneration.from_pretrained(
        tmp_path / "it", output_loading_info=True
    )
    assert not any(report.values()), report
    assert_same(ours, theirs.eval())
    assert theirs.generation_config.eos_token_id == END_ID
    assert_same(read_vlm(tmp_path / "it").model, theirs)


def test_the_reference_takes_words_and_pictures_from_our_folder(tmp_path: Path) -> None:
    write_released(tmp_path / "it")
    ours = read_vlm(tmp_path / "it").processor
    theirs = AutoTokenizer.from_pretrained(tmp_path / "it")
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token_id) == (
        "<|im_start|>",
        "<end_of_utterance>",
        ours.pad_id,
    )
    assert (theirs.image_token, theirs.end_of_utterance_token) == ("<image>", "<end_of_utterance>")
    picture = np.random.default_rng(0).integers(256, size=(50, 90, 3), dtype=np.uint8)
    talk = [
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "eh"}]}
    ]
    assert theirs.apply_chat_template(talk, tokenize=False) == (
        "<|im_start|>User:<image>eh<end_of_utterance>\n"
    )
    prompts = ours.encode([talk])
    assert prompts.ids[0].tolist() == theirs(ours.text(talk), add_special_tokens=False)["input_ids"]
    for kind in (SmolVLMImageProcessorPil, Idefics3ImageProcessorPil):
        pixels = kind.from_pretrained(tmp_path / "it")(Image.fromarray(picture), return_tensors="pt")
        assert prompts.pixels is not None
        torch.testing.assert_close(prompts.pixels, pixels["pixel_values"][0])


def test_a_video_processor_of_the_reference_finds_its_settings(tmp_path: Path) -> None:
    """Making one needs torchvision: what it would be given is compared, in the order in which it looks."""
    write_released(tmp_path / "it")
    given = json.loads((tmp_path / "it/video_preprocessor_config.json").read_text())
    assert given["size"] == given["video_sampling"]["video_size"], "the first replaces the second"
    ours = read_vlm(tmp_path / "it").processor.video
    assert ours == make_processor().video


PARTIAL: dict[str, dict[str, Any]] = {
    "nothing": {},
    "empty parts": {"text_config": {}, "vision_config": {}},
    "a text part alone": {"text_config": {"hidden_size": 64, "num_attention_heads": 4}},
    "no head size": {"text_config": {"head_dim": None, "num_key_value_heads": None}},
    "the old base of the angles": {"text_config": {"rope_theta": 7.0, "rope_scaling": None}},
    "old scaling that does nothing": {
        "text_config": {"rope_theta": 7.0, "rope_scaling": {"type": "default", "rope_theta": 5.0}}
    },
    "both bases": {
        "text_config": {"rope_theta": 7.0, "rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}
    },
    "the base beside its kind": {
        "text_config": {"rope_theta": 7.0, "rope_parameters": {"rope_type": "default"}}
    },
    "tied above": {"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": False}},
    "tied below": {"text_config": {"tie_word_embeddings": True}},
    "sides as pairs": {"vision_config": {"image_size": [64, 64], "patch_size": [16, 16]}, "scale_factor": 4},
    "another epsilon": {"vision_config": {"layer_norm_eps": 1e-5}, "text_config": {"rms_norm_eps": 1e-4}},
}


@pytest.mark.parametrize("kind", [SmolVLMConfig, Idefics3Config])
@pytest.mark.parametrize("partial", PARTIAL.values(), ids=PARTIAL)
def test_missing_fields_are_the_defaults_of_the_reference(
    partial: dict[str, Any], kind: type[SmolVLMConfig] | type[Idefics3Config]
) -> None:
    small = {"image_token_id": 9, "vision_config": {"image_size": 224, "patch_size": 28}}  # 224 / 32 is odd
    given = {"model_type": kind.model_type, **small, **partial}
    if given["vision_config"] == {}:
        given["vision_config"] = {"patch_size": 28}
    if "layer_norm_eps" in given["vision_config"]:
        given["vision_config"] = given["vision_config"] | {"patch_size": 28}
    theirs = kind(**json.loads(json.dumps(given)))
    ours = vlm_config(given, "config.json")
    text, vision = theirs.text_config, theirs.vision_config

    def side(value: int | list[int]) -> int:
        return value if isinstance(value, int) else value[0]

    assert (ours.shuffle, ours.decoder.tied) == (theirs.scale_factor, theirs.tie_word_embeddings)
    decoder, tower = ours.decoder, ours.vision
    assert (decoder.width, decoder.num_layers) == (text.hidden_size, text.num_hidden_layers)
    assert (decoder.num_heads, decoder.num_kv_heads) == (text.num_attention_heads, text.num_key_value_heads)
    assert (decoder.head_dim, decoder.mlp_dim) == (text.head_dim, text.intermediate_size)
    assert (decoder.vocab, decoder.max_positions) == (text.vocab_size, text.max_position_embeddings)
    assert (decoder.rope_theta, decoder.norm_eps) == (text.rope_parameters["rope_theta"], text.rms_norm_eps)
    assert (tower.image_size, tower.patch_size) == (side(vision.image_size), side(vision.patch_size))
    assert (tower.width, tower.num_layers) == (vision.hidden_size, vision.num_hidden_layers)
    assert (tower.num_heads, tower.mlp_dim) == (vision.num_attention_heads, vision.intermediate_size)
    assert tower.norm_eps == vision.layer_norm_eps


def test_the_image_token_has_the_default_of_the_reference() -> None:
    assert SmolVLMConfig().image_token_id == Idefics3Config().image_token_id == 128257
    with pytest.raises(CheckpointError, match="image_token_id=128257 is outside the vocabulary of 32000"):
        vlm_config({"model_type": "smolvlm", "vision_config": {"patch_size": 28}}, "config.json")


@pytest.mark.parametrize("cfg", VARIANTS.values(), ids=VARIANTS)
def test_our_config_describes_the_same_model_to_the_reference(cfg: VLMConfig) -> None:
    written = released_config(cfg, pad_id=2, end_ids=frozenset({1}), dtype="float32")
    theirs = SmolVLMConfig(**{name: value for name, value in written.items() if name != "model_type"})
    assert vlm_config(json.loads(theirs.to_json_string()), "config.json") == cfg


@pytest.mark.full
def test_the_256m_shape_has_the_logits_and_the_greedy_words_of_the_reference(tmp_path: Path) -> None:
    cfg = SMOLVLM2_256M
    theirs = build_reference(cfg, seed=0)
    theirs.save_pretrained(tmp_path, max_shard_size="400MB")
    ours = load_model(tmp_path, cfg)
    assert_same(ours, theirs)
    ids, pixels = inputs(cfg)
    with torch.inference_mode():
        expected = theirs.generate(
            input_ids=ids,
            pixel_values=pixels[None],
            attention_mask=torch.ones_like(ids),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=None,
        )[0, ids.shape[1] :]
        cache = DenseCache()
        word = ours(ids, pixels, cache=cache)[:, -1].argmax(-1)
        said = [word.item()]
        for _ in range(7):
            word = ours(word[:, None], cache=cache)[:, -1].argmax(-1)
            said.append(word.item())
    assert said == expected.tolist()
