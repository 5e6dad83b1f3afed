"""The parts that a VLM is made of, each from a hub-layout folder: a SigLIP image tower, a Llama.

Fields that are missing from config.json take the defaults of the reference's classes: SigLIP's releases say
little more than the image size.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tailorbird.checkpoint.files import TensorReader, find_weights, list_tensors, require_fit
from tailorbird.checkpoint.gguf import TextTower, read_gguf
from tailorbird.checkpoint.hub import find_model
from tailorbird.checkpoint.processor import read_object, read_optional
from tailorbird.checkpoint.released import Fields
from tailorbird.checkpoint.smolvlm import decoder_block_rules, vision_block_rules
from tailorbird.checkpoint.table import Rule, affine, differing, drop, each, inside, plan, same
from tailorbird.errors import CheckpointError, ConfigError
from tailorbird.model.build import build_model
from tailorbird.model.config import DecoderConfig, VisionConfig
from tailorbird.model.lm import LM
from tailorbird.model.vision import Vision

DROPPED = {  # what else a SigLIP has, and why nothing is lost
    "head.": "pools the patches to one vector for comparing it with a text; the connector reads the patches",
    "text_model.": "the other half of the comparison",
    "logit_": "temperature and bias of the comparison",
}
VISION_NEUTRAL = {"hidden_act": ("gelu_pytorch_tanh",), "num_channels": (3,)}
TEXT_NEUTRAL = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "quantization_config": (None,),
}


class VisionTower(NamedTuple):
    model: Vision
    cfg: VisionConfig


def read_vision(name: str | Path, *, dtype: torch.dtype = torch.float32) -> VisionTower:
    """The image tower of a SigLIP, saved whole (SiglipModel) or alone (SiglipVisionModel).

    Raises:
        CheckpointError: there is no such folder or hub id, it holds another model, or a file is damaged.
    """
    folder = find_model(name)
    cfg = vision_config(read_object(folder / "config.json"), folder / "config.json")
    with torch.device("meta"):
        model = Vision(cfg)
    source = find_weights(folder)
    keys = set(list_tensors(source))
    prefix = "vision_model." if any(key.startswith("vision_model.") for key in keys) else ""
    dropped = {key for key in keys if key.removeprefix(prefix).startswith(tuple(DROPPED))}
    _fill(model, source, siglip_rules(cfg, prefix), keys - dropped, dtype)
    return VisionTower(model.eval(), cfg)


def read_text(name: str | Path, *, dtype: torch.dtype = torch.float32) -> TextTower:
    """A Llama such as SmolLM2, from a .gguf file or a hub-layout folder.

    Raises:
        CheckpointError: there is no such file, folder or hub id, it holds another model, or it is damaged.
    """
    if str(name).endswith(".gguf"):
        return read_gguf(Path(name), dtype=dtype)
    folder = find_model(name)
    config = read_object(folder / "config.json")
    cfg = text_config(config, folder / "config.json")
    model = build_model(cfg, "meta")
    assert isinstance(model, LM)
    source = find_weights(folder)
    _fill(model, source, llama_rules(cfg), set(list_tensors(source)), dtype)
    return TextTower(
        model=model.eval(),
        tokenizer=_text(folder / "tokenizer.json"),
        template=_template(folder),
        end_ids=_end_ids(folder, config),
    )


def siglip_rules(cfg: VisionConfig, prefix: str) -> list[Rule]:
    """The whole table: released SigLIP names, below `prefix`, to those of `Vision`."""
    blocks = inside(vision_block_rules(cfg), "encoder.layers.*.", "blocks.*.")
    rules = [
        *affine("embeddings.patch_embedding", "patches"),
        same("embeddings.position_embedding.weight", "positions.weight"),
        *each(range(cfg.num_layers), blocks),
        *affine("post_layernorm", "norm"),
    ]
    return inside(rules, prefix, "")


def llama_rules(cfg: DecoderConfig) -> list[Rule]:
    """The whole table: names of a released Llama to those of `LM`."""
    blocks = inside(decoder_block_rules(cfg), "model.layers.*.", "decoder.blocks.*.")
    return [
        same("model.embed_tokens.weight", "decoder.embed.weight"),
        *each(range(cfg.num_layers), blocks),
        same("model.norm.weight", "decoder.norm.weight"),
        drop("lm_head.weight", why="the head is tied to the embedding", repeats="model.embed_tokens.weight")
        if cfg.tied
        else same("lm_head.weight", "head.weight"),
    ]


def vision_config(config: Mapping[str, Any], source: object) -> VisionConfig:
    """The image tower that a SigLIP's config.json describes. `source` names the file in errors."""
    top = Fields(str(source), "", config)
    fields = {"siglip": top.inner("vision_config"), "siglip_vision_model": top}.get(
        config.get("model_type", "")
    )
    if fields is None:
        raise CheckpointError(
            f"{source} describes a model of type {config.get('model_type')!r}, and siglip and "
            "siglip_vision_model are read: name a folder or hub id of a SigLIP"
        )
    fields.require(VISION_NEUTRAL)
    return _checked(
        source,
        lambda: VisionConfig(
            image_size=fields.side("image_size", 224),
            patch_size=fields.side("patch_size", 16),
            width=fields.whole("hidden_size", 768),
            num_layers=fields.whole("num_hidden_layers", 12),
            num_heads=fields.whole("num_attention_heads", 12),
            mlp_dim=fields.whole("intermediate_size", 3072),
            norm_eps=fields.real("layer_norm_eps", 1e-6),
        ),
    )


def text_config(config: Mapping[str, Any], source: object) -> DecoderConfig:
    """The language model that a Llama's config.json describes. `source` names the file in errors."""
    fields = Fields(str(source), "", config)
    if (kind := config.get("model_type")) != "llama":
        raise CheckpointError(
            f"{source} describes a model of type {kind!r}, and 'llama' is read: name a folder or hub id of a "
            "SmolLM2 or another Llama, or a .gguf file of one"
        )
    fields.require(TEXT_NEUTRAL)
    width, num_heads = fields.whole("hidden_size", 4096), fields.whole("num_attention_heads", 32)
    if num_heads < 1 or (config.get("head_dim") is None and width % num_heads):
        raise fields.wrong("num_attention_heads", f"a divisor of hidden_size={width}")
    given = {key: value for key, value in config.items() if value is not None}  # null is as good as nothing
    sizes = Fields(str(source), "", given)
    return _checked(
        source,
        lambda: DecoderConfig(
            width=width,
            num_layers=fields.whole("num_hidden_layers", 32),
            num_heads=num_heads,
            num_kv_heads=sizes.whole("num_key_value_heads", num_heads),
            head_dim=sizes.whole("head_dim", width // num_heads),
            mlp_dim=fields.whole("intermediate_size", 11008),
            vocab=fields.whole("vocab_size", 32000),
            max_positions=fields.whole("max_position_embeddings", 2048),
            rope_theta=_rope_theta(sizes),
            norm_eps=fields.real("rms_norm_eps", 1e-6),
            tied=fields.truth("tie_word_embeddings", False),
        ),
    )


def _rope_theta(fields: Fields) -> float:
    """Old files have rope_theta and rope_scaling beside each other, new ones rope_parameters with both."""
    name = "rope_scaling" if fields.values.get("rope_scaling") else "rope_parameters"
    rope = fields.inner(name)
    if rope.values.get("rope_type", rope.values.get("type", "default")) != "default":
        raise fields.wrong(name, "of rope_type 'default', which is all that is supported")
    return rope.real("rope_theta", fields.real("rope_theta", 10_000.0))


def _checked(source: object, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except ConfigError as error:
        raise CheckpointError(
            f"{source}: {error}. Use the config.json that was saved with the weights"
        ) from error


def _fill(model: nn.Module, source: Path, rules: list[Rule], keys: set[str], dtype: torch.dtype) -> None:
    """Give a model on the meta device the weights of a file that the rules name, and no others."""
    stored = {key: one for key, one in list_tensors(source).items() if key in keys}
    shapes, reader = {key: one.shape for key, one in stored.items()}, TensorReader(stored)
    try:
        settled = plan(shapes, rules)
        for rule in settled.repeats:
            if not reader.are_equal(rule.theirs[0], str(rule.repeats)):
                raise differing(rule)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}. Use the config.json that was saved with it") from error
    needed = settled.shapes(shapes)
    require_fit(model, needed, source)
    weights: dict[str, Tensor] = {}
    for name, rule in settled.kept.items():
        weights[name] = torch.empty(needed[name], dtype=dtype)
        parts = weights[name].split(rule.rows) if rule.rows else [weights[name]]
        for key, part in zip(rule.theirs, parts, strict=True):
            reader.copy(key, part)
    model.load_state_dict(weights, assign=True)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): save or fetch the model again") from error


def _template(folder: Path) -> str:
    """Empty for a base model, which has none."""
    if (folder / "chat_template.jinja").exists():
        return _text(folder / "chat_template.jinja")
    template = read_optional(folder / "tokenizer_config.json").get("chat_template")
    return template if isinstance(template, str) else ""


def _end_ids(folder: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    value = read_optional(folder / "generation_config.json").get("eos_token_id", config.get("eos_token_id"))
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(one) is int for one in ids):
        raise CheckpointError(f"{folder}: eos_token_id is {value!r}, ids are whole numbers: fetch it again")
    return tuple(ids)
