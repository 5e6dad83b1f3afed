"""GGUF files that a test can afford, written by gguf's own writer as llama.cpp's converter writes them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

from tailorbird.checkpoint.gguf import gguf_rules
from tailorbird.checkpoint.table import revert
from tailorbird.model.build import build_model
from tailorbird.model.config import DecoderConfig
from tailorbird.processing.chat import CHATML

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = [
    ("h", "e"),
    ("\u0120", "t"),
    ("\u0120t", "he"),
    ("l", "l"),
    ("he", "ll"),
    ("hell", "o"),
]  # " the", "hello"
TOKENS = [*SPECIAL, *sorted(ByteLevel.alphabet()), *("".join(pair) for pair in MERGES)]
CONFIG = DecoderConfig(  # rows of 32 and more, for blocks of Q8_0
    width=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    mlp_dim=64,
    vocab=len(TOKENS),
    max_positions=128,
    rope_theta=5000.0,
    norm_eps=0.03,
    tied=True,
)
F32, F16, Q8_0 = (gguf.GGMLQuantizationType[name] for name in ("F32", "F16", "Q8_0"))


def random_weights(cfg: DecoderConfig, seed: int = 0) -> dict[str, Tensor]:
    """Large, norms too, so that everything matters; our names."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=generator) * value.shape[-1] ** -0.5 + (value.dim() == 1)
        for name, value in build_model(cfg, "meta").state_dict().items()
    }


def interleaved(weight: Tensor, head_dim: int) -> Tensor:
    """Rows as llama.cpp wants them: the two channels that turn together are neighbours."""
    halves = weight.unflatten(0, (-1, 2, head_dim // 2))  # (H, 2, D/2, C)
    return halves.transpose(1, 2).flatten(0, 2)  # (H * D, C)


@dataclass(frozen=True, kw_only=True)
class Gguf:
    """What a test changes about a good file. metadata: None removes a field."""

    cfg: DecoderConfig = CONFIG
    kind: gguf.GGMLQuantizationType = F32
    architecture: str = "llama"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor | None] = field(default_factory=dict)

    def write(self, path: Path, weights: Mapping[str, Tensor] | None = None) -> Path:
        writer = gguf.GGUFWriter(path, self.architecture)
        for name, value in {**self._fields(), **self.metadata}.items():
            if value is not None:
                self._add(writer, name, value)
        theirs = revert(weights or random_weights(self.cfg), gguf_rules(self.cfg))
        for name, value in {**theirs, **self.tensors}.items():
            if value is None:
                continue
            turns = name.endswith(("attn_q.weight", "attn_k.weight"))
            plain = (interleaved(value, self.cfg.head_dim) if turns else value).contiguous().numpy()
            kind = self.kind if value.dim() > 1 else F32
            stored = gguf.quantize(plain, kind)
            writer.add_tensor(name, stored, raw_dtype=None if kind in (F32, F16) else kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def _fields(self) -> dict[str, Any]:
        cfg = self.cfg
        types = [3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL))
        return {
            "general.name": "small",
            "llama.block_count": cfg.num_layers,
            "llama.context_length": cfg.max_positions,
            "llama.embedding_length": cfg.width,
            "llama.feed_forward_length": cfg.mlp_dim,
            "llama.attention.head_count": cfg.num_heads,
            "llama.attention.head_count_kv": cfg.num_kv_heads,
            "llama.rope.freq_base": cfg.rope_theta,
            "llama.attention.layer_norm_rms_epsilon": cfg.norm_eps,
            "llama.rope.dimension_count": cfg.head_dim,
            "llama.attention.key_length": cfg.head_dim,
            "llama.vocab_size": cfg.vocab,
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "smollm",
            "tokenizer.ggml.tokens": TOKENS,
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.merges": [" ".join(pair) for pair in MERGES],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.chat_template": CHATML.template,
        }

    @staticmethod
    def _add(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
        match value:
            case bool():
                writer.add_bool(name, value)
            case int():
                writer.add_uint32(name, value)
            case float():
                writer.add_float32(name, value)
            case str():
                writer.add_string(name, value)
            case _:
                writer.add_array(name, value)


def stored_as(value: Tensor, kind: gguf.GGMLQuantizationType) -> Tensor:
    """What is left of fp32 numbers after storage."""
    if value.dim() == 1:
        return value
    return torch.from_numpy(np.array(gguf.dequantize(gguf.quantize(value.numpy(), kind), kind)))
