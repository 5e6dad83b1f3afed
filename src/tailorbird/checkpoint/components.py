"""The parts that a VLM is made of, each from a hub-layout folder: a SigLIP image tower, a Llama.

Fields that are missing from config.json take the defaults of the reference's classes: SigLIP's releases say
little more than the image size.
"""

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tailorbird.checkpoint.files import find_weights, list_tensors
from tailorbird.checkpoint.fill import fill, on_meta
from tailorbird.checkpoint.folder import read_end_ids, read_object, read_template, read_words
from tailorbird.checkpoint.gguf import TextTower, read_gguf
from tailorbird.checkpoint.hub import find_model
from tailorbird.checkpoint.released import NEUTRAL, Fields, consistent, decoder_sizes, vision_sizes
from tailorbird.checkpoint.smolvlm import decoder_block_rules, vision_block_rules
from tailorbird.checkpoint.table import Rule, affine, drop, each, inside, same
from tailorbird.errors import CheckpointError
from tailorbird.model.config import DecoderConfig, VisionConfig
from tailorbird.model.lm import LM
from tailorbird.model.vision import Vision

DROPPED = {  # what else a SigLIP has, and why nothing is lost
    "head.": "pools the patches to one vector for comparing it with a text; the connector reads the patches",
    "text_model.": "the other half of the comparison",
    "logit_": "temperature and bias of the comparison",
}


class VisionTower(NamedTuple):
    model: Vision
    cfg: VisionConfig


def read_vision(name: str | Path) -> VisionTower:
    """The image tower of a SigLIP, saved whole (SiglipModel) or alone (SiglipVisionModel), in fp32.

    Raises:
        CheckpointError: there is no such folder or hub id, it holds another model, or a file is damaged.
    """
    folder = find_model(name)
    cfg = vision_config(read_object(folder / "config.json"), folder / "config.json")
    source = find_weights(folder)
    stored = list_tensors(source)
    prefix = "vision_model." if any(key.startswith("vision_model.") for key in stored) else ""
    kept = {
        key: one for key, one in stored.items() if not key.removeprefix(prefix).startswith(tuple(DROPPED))
    }
    model = on_meta(lambda: Vision(cfg), cfg.num_layers, kept, source)
    fill(model, source, kept, siglip_rules(cfg, prefix), dtype=torch.float32)
    return VisionTower(model.eval(), cfg)


def read_text(
    name: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> TextTower:
    """A Llama such as SmolLM2, from a .gguf file, a hub-layout folder, or the hub.

    `dtype` None is that of the weights in a folder, and fp32 for a .gguf file.

    Raises:
        CheckpointError: there is no such file, folder or hub id, it holds another model, or it is damaged.
    """
    path = Path(name)
    if path.suffix.lower() == ".gguf" and not path.is_dir():
        return read_gguf(path, dtype=dtype, device=device)
    folder = find_model(name)
    config = read_object(folder / "config.json")
    cfg = text_config(config, folder / "config.json")
    tokenizer, end_ids = read_words(folder / "tokenizer.json"), read_end_ids(folder, config, cfg.vocab)
    template, file = read_template(folder) or ("", None)
    if file and not template.strip():
        raise CheckpointError(f"{file} is empty: fetch it again, or delete it if the model has no template")
    source = find_weights(folder)
    stored = list_tensors(source)
    model = on_meta(lambda: LM(cfg), cfg.num_layers, stored, source)
    fill(model, source, stored, llama_rules(cfg), device=device, dtype=dtype)
    return TextTower(model=model.eval(), tokenizer=tokenizer, template=template, end_ids=end_ids)


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
    fields = Fields(str(source), "", config)
    kind = config.get("model_type")
    if kind == "siglip":
        fields = fields.inner("vision_config")
    elif kind != "siglip_vision_model":
        raise CheckpointError(
            f"{source} describes a model of type {reprlib.repr(kind)}, and siglip and "
            "siglip_vision_model are read: name a folder or hub id of a SigLIP"
        )
    fields.require(NEUTRAL["vision_config"])
    with consistent(source):
        return vision_sizes(fields, patch_size=16, width=768, num_heads=12)


def text_config(config: Mapping[str, Any], source: object) -> DecoderConfig:
    """The language model that a Llama's config.json describes. `source` names the file in errors."""
    fields = Fields(str(source), "", config)
    if (kind := config.get("model_type")) != "llama":
        raise CheckpointError(
            f"{source} describes a model of type {reprlib.repr(kind)}, and 'llama' is read: name a folder or "
            "hub id of a SmolLM2 or another Llama, or a .gguf file of one"
        )
    fields.require(NEUTRAL["text_config"])
    with consistent(source):
        return decoder_sizes(fields, tied=fields.truth("tie_word_embeddings", False), norm_eps=1e-6)
