"""A text tower from one GGUF file: sizes, weights, tokenizer and chat template."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tailorbird.checkpoint.files import load_weights, require_fit
from tailorbird.checkpoint.gguf_file import GgufFile, open_gguf
from tailorbird.checkpoint.gguf_words import read_tokenizer
from tailorbird.checkpoint.table import Rule, convert, each, inside, plan, same, stack
from tailorbird.errors import CheckpointError, ConfigError
from tailorbird.model.build import build_model
from tailorbird.model.config import DecoderConfig
from tailorbird.model.lm import LM

FAMILY = "llama"
UNREAD = ("rope.scaling.type", "expert_count", "attention.sliding_window")  # what `Decoder` does not have
TENSORS_A_BLOCK, LARGEST = 9, 2**28


class TextTower(NamedTuple):
    """A language model and what turns words into its ids.

    tokenizer: tokenizer.json. template: Jinja, or "". end_ids: tokens that end an answer.
    """

    model: LM
    tokenizer: str
    template: str
    end_ids: tuple[int, ...]


def read_gguf(path: Path, *, dtype: torch.dtype | None = None, device: str = "cpu") -> TextTower:
    """Read a Llama from a GGUF file, dequantised to `dtype` (fp32 if None).

    What the quantisation lost stays lost: the result is the dequantised model, not the original.

    Raises:
        CheckpointError: the file is damaged, of another architecture, or contradicts itself.
        ConfigError: the package `gguf` is not installed.
    """
    file = open_gguf(path)
    cfg = decoder_config(file)
    tokenizer = read_tokenizer(file)
    model = build_model(cfg, "meta")
    assert isinstance(model, LM)
    rules = gguf_rules(cfg)
    try:
        settled = plan({name: place.shape for name, place in file.places.items()}, rules)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    require_fit(model, settled.shapes({name: place.shape for name, place in file.places.items()}), path)
    theirs = {name: _tensor(file, name, cfg).to(device, dtype or torch.float32) for name in file.places}
    load_weights(model, convert(theirs, rules), path)
    end = file.metadata.get("tokenizer.ggml.eos_token_id")
    return TextTower(
        model=model.eval(),
        tokenizer=tokenizer,
        template=file.metadata.get("tokenizer.chat_template", ""),
        end_ids=() if end is None else (end,),
    )


def gguf_rules(cfg: DecoderConfig) -> list[Rule]:
    """The whole table: a Llama's names in GGUF to those of `LM`."""
    q, kv = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
    block = [
        same("attn_norm.weight", "norm_1.weight"),
        stack(*(f"attn_{p}.weight" for p in "qkv"), ours="attn.qkv.weight", rows=(q, kv, kv)),
        same("attn_output.weight", "attn.out.weight"),
        same("ffn_norm.weight", "norm_2.weight"),
        *(same(f"ffn_{part}.weight", f"mlp.{part}.weight") for part in ("gate", "up", "down")),
    ]
    return [
        same("token_embd.weight", "decoder.embed.weight"),
        *each(range(cfg.num_layers), inside(block, "blk.*.", "decoder.blocks.*.")),
        same("output_norm.weight", "decoder.norm.weight"),
        *([] if cfg.tied else [same("output.weight", "head.weight")]),
    ]


def decoder_config(file: GgufFile) -> DecoderConfig:
    """Sizes from the metadata, held against the tensors' shapes.

    Raises:
        CheckpointError: another architecture, a missing number, or sizes that contradict each other.
    """
    path, found = file.path, file.metadata
    if (family := found.get("general.architecture")) != FAMILY:
        raise CheckpointError(f"{path} holds a {family!r} model, {FAMILY!r} can be read: take another file")
    if more := [name for name in UNREAD if found.get(f"{FAMILY}.{name}") not in (None, 0, "none")]:
        raise CheckpointError(f"{path} sets {more}, which this decoder does not have: take another file")
    width, heads = _number(file, "embedding_length"), _number(file, "attention.head_count")
    head_dim = _number(file, "rope.dimension_count", width // heads)
    if (key_dim := _number(file, "attention.key_length", head_dim)) != head_dim:
        raise CheckpointError(f"{path}: heads of {key_dim} of which {head_dim} turn: whole heads can be read")
    embedding = file.places.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(f"{path} lacks token_embd.weight: it is no whole model. Take another file")
    try:
        cfg = DecoderConfig(
            width=width,
            num_layers=_number(file, "block_count"),
            num_heads=heads,
            num_kv_heads=_number(file, "attention.head_count_kv", heads),
            head_dim=head_dim,
            mlp_dim=_number(file, "feed_forward_length"),
            vocab=_number(file, "vocab_size", embedding.shape[0]),
            max_positions=_number(file, "context_length"),
            rope_theta=_real(file, "rope.freq_base", 10_000.0),
            norm_eps=_real(file, "attention.layer_norm_rms_epsilon", None),
            tied="output.weight" not in file.places,
        )
    except ConfigError as error:
        raise CheckpointError(f"{path} contradicts itself: {error}. Convert it again") from error
    _agree(file, cfg)
    return cfg


def _agree(file: GgufFile, cfg: DecoderConfig) -> None:
    """Before anything is built: a count in a file must not decide how long we work."""
    if cfg.num_layers * TENSORS_A_BLOCK > len(file.places):
        raise CheckpointError(
            f"{file.path} announces {cfg.num_layers} blocks and has {len(file.places)} tensors, too few for "
            f"{TENSORS_A_BLOCK} in each. Convert it again"
        )
    words = len(file.metadata.get("tokenizer.ggml.tokens", ()))
    if words and words != cfg.vocab:
        raise CheckpointError(
            f"{file.path}: its tokenizer has {words} tokens, the model {cfg.vocab}. Convert it again"
        )
    expected = {
        "token_embd": (cfg.vocab, cfg.width),
        "blk.0.attn_q": (cfg.num_heads * cfg.head_dim, cfg.width),
        "blk.0.attn_k": (cfg.num_kv_heads * cfg.head_dim, cfg.width),
        "blk.0.ffn_gate": (cfg.mlp_dim, cfg.width),
    }
    for name, shape in expected.items():
        place = file.places.get(f"{name}.weight")
        if place is not None and place.shape != shape:
            raise CheckpointError(
                f"{file.path}: {name}.weight has shape {place.shape}, the metadata say {shape}. "
                "Convert it again"
            )


def _number(file: GgufFile, name: str, default: int | None = None) -> int:
    value: Any = file.metadata.get(f"{FAMILY}.{name}", default)
    if type(value) is not int or not 0 < value < LARGEST:
        raise CheckpointError(
            f"{file.path}: {FAMILY}.{name} is {value!r}, a number from 1 to {LARGEST} is needed. "
            "Convert it again"
        )
    return value


def _real(file: GgufFile, name: str, default: float | None) -> float:
    """The shortest decimal that is the same number in fp32: 1e-5, not 9.999999747378752e-06."""
    value: Any = file.metadata.get(f"{FAMILY}.{name}", default)
    if type(value) is not float or not np.isfinite(value) or value <= 0:
        raise CheckpointError(
            f"{file.path}: {FAMILY}.{name} is {value!r}, a positive number is needed. Convert it again"
        )
    return float(str(np.float32(value)))


def _tensor(file: GgufFile, name: str, cfg: DecoderConfig) -> Tensor:
    """In fp32. Queries and keys are stored to turn channels 2i and 2i + 1; `rotate` turns i and i + D/2."""
    value = file.dequantise(name)
    if name.endswith((".attn_q.weight", ".attn_k.weight")):
        pairs = value.unflatten(0, (-1, cfg.head_dim // 2, 2))  # (H, D/2, 2, C)
        value = pairs.transpose(1, 2).flatten(0, 2)  # (H * D, C)
    return value
