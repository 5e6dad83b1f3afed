"""A text tower from one GGUF file: sizes, weights, tokenizer and chat template."""

import reprlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tailorbird.checkpoint.files import load_weights, require_fit
from tailorbird.checkpoint.fill import on_meta
from tailorbird.checkpoint.gguf_file import GgufFile, open_gguf
from tailorbird.checkpoint.released import LARGEST
from tailorbird.checkpoint.table import Rule, convert, each, inside, plan, same, stack
from tailorbird.errors import CheckpointError, ConfigError
from tailorbird.model.config import DecoderConfig
from tailorbird.model.lm import LM

FAMILY, WORDS = "llama", "tokenizer.ggml."
UNREAD = ("rope.scaling.type", "expert_count", "attention.sliding_window")  # what `Decoder` does not have
TENSORS_A_BLOCK = 9
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # what a token is, as ggml numbers it
CUTS_DIGITS = {"gpt-2": False, "smollm": True}  # before GPT-2's own expression cuts words
SUPPORTED = f"byte-level BPE (gpt2) split as {' or '.join(CUTS_DIGITS)}"


class TextTower(NamedTuple):
    """A language model and what turns words into its ids.

    tokenizer: tokenizer.json. template: Jinja, or "". end_ids: tokens that end an answer.
    """

    model: LM
    tokenizer: str
    template: str
    end_ids: frozenset[int]


def read_gguf(
    path: Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> TextTower:
    """Read a Llama from a GGUF file, dequantised to `dtype` (fp32 if None).

    What the quantisation lost stays lost: the result is the dequantised model, not the original.

    Raises:
        CheckpointError: the file is damaged, of another architecture, or contradicts itself.
        ConfigError: the package `gguf` is not installed.
    """
    file = open_gguf(path)
    cfg = gguf_config(file)
    tokenizer, template, end_ids = (
        read_tokenizer(file),
        _text(file, "tokenizer.chat_template", ""),
        _end_ids(file, cfg.vocab),
    )
    model = on_meta(lambda: LM(cfg), cfg.num_layers, file.places, path)
    rules = gguf_rules(cfg)
    try:
        settled = plan({name: place.shape for name, place in file.places.items()}, rules)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    require_fit(model, settled.shapes({name: place.shape for name, place in file.places.items()}), path)
    theirs = {name: _tensor(file, name, cfg).to(device, dtype or torch.float32) for name in file.places}
    load_weights(model, convert(theirs, rules), path)
    return TextTower(model=model.eval(), tokenizer=tokenizer, template=template, end_ids=end_ids)


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


def gguf_config(file: GgufFile) -> DecoderConfig:
    """Sizes from the metadata, held against the tensors' shapes.

    Raises:
        CheckpointError: another architecture, a missing number, or sizes that contradict each other.
    """
    path, found = file.path, file.metadata
    if (family := found.get("general.architecture")) != FAMILY:
        raise CheckpointError(
            f"{path} holds a {reprlib.repr(family)} model, {FAMILY!r} can be read: take another file"
        )
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
    words = file.metadata.get(WORDS + "tokens")
    if isinstance(words, list) and words and len(words) != cfg.vocab:
        raise CheckpointError(
            f"{file.path}: its tokenizer has {len(words)} tokens, the model {cfg.vocab}. Convert it again"
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
            f"{file.path}: {FAMILY}.{name} is {reprlib.repr(value)}, a number from 1 to {LARGEST} is needed. "
            "Convert it again"
        )
    return value


def _real(file: GgufFile, name: str, default: float | None) -> float:
    """The shortest decimal that is the same number in fp32: 1e-5, not 9.999999747378752e-06."""
    value: Any = file.metadata.get(f"{FAMILY}.{name}", default)
    if type(value) is not float or not np.isfinite(value) or value <= 0:
        raise CheckpointError(
            f"{file.path}: {FAMILY}.{name} is {reprlib.repr(value)}, a positive number is needed. "
            "Convert it again"
        )
    return float(str(np.float32(value)))


def _text(file: GgufFile, name: str, default: str) -> str:
    value: Any = file.metadata.get(name, default)
    if not isinstance(value, str):
        raise CheckpointError(
            f"{file.path}: {name} is {reprlib.repr(value)}, a text is needed. Convert it again"
        )
    return value


def _end_ids(file: GgufFile, vocab: int) -> frozenset[int]:
    value: Any = file.metadata.get(name := WORDS + "eos_token_id")
    if value is None:
        return frozenset()
    if type(value) is not int or not 0 <= value < vocab:
        raise CheckpointError(
            f"{file.path}: {name} is {reprlib.repr(value)}, one of {vocab} tokens is needed. Convert it again"
        )
    return frozenset({value})


def _tensor(file: GgufFile, name: str, cfg: DecoderConfig) -> Tensor:
    """In fp32. Queries and keys are stored to turn channels 2i and 2i + 1; `rotate` turns i and i + D/2."""
    value = file.dequantise(name)
    if name.endswith((".attn_q.weight", ".attn_k.weight")):
        pairs = value.unflatten(0, (-1, cfg.head_dim // 2, 2))  # (H, D/2, 2, C)
        value = pairs.transpose(1, 2).flatten(0, 2)  # (H * D, C)
    return value


def read_tokenizer(file: GgufFile) -> str:
    """The file's byte-level BPE as tokenizer.json, with every token at its id.

    SmolLM cuts digits off first, as its release and llama.cpp do. The GGUF reader of transformers 5.23 leaves
    that out, and differs where several blanks precede a digit (tests/parity/test_gguf.py).
    No token is put in front of a text: the chat format spells its own markers.

    Raises:
        CheckpointError: another kind of tokenizer, or a damaged one.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    cuts_digits = _cuts_digits(file)
    tokens, merges, kinds = _parts(file)
    try:
        backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    except Exception as error:  # the library raises a bare Exception
        raise CheckpointError(f"{file.path}: its tokenizer is damaged ({error}). Convert it again") from error
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, words]) if cuts_digits else words
    backend.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, kinds, strict=True):
        if kind in (CONTROL, USER_DEFINED):
            special = kind == CONTROL
            backend.add_tokens([AddedToken(token, normalized=False, special=special)])
    return str(backend.to_str())


def _cuts_digits(file: GgufFile) -> bool:
    kind, split = _text(file, WORDS + "model", ""), _text(file, WORDS + "pre", "gpt-2")
    if kind != "gpt2" or split not in CUTS_DIGITS:
        raise CheckpointError(
            f"{file.path} has a tokenizer of kind {kind!r} split as {split!r}; {SUPPORTED} can be read: "
            "give the model in hub layout, with its tokenizer.json"
        )
    return CUTS_DIGITS[split]


def _parts(file: GgufFile) -> tuple[list[str], list[tuple[str, str]], list[int]]:
    """Tokens by id, merges, and what each token is."""
    tokens: Any = file.metadata.get(WORDS + "tokens")
    merges: Any = file.metadata.get(WORDS + "merges")
    if not _texts(tokens) or not _texts(merges) or len(set(tokens)) != len(tokens):
        raise CheckpointError(f"{file.path}: its tokenizer lacks tokens or merges. Convert it again")
    kinds: Any = file.metadata.get(WORDS + "token_type", [NORMAL] * len(tokens))
    if (
        not isinstance(kinds, list)
        or len(kinds) != len(tokens)
        or set(kinds) - {NORMAL, CONTROL, USER_DEFINED, UNUSED}
    ):
        raise CheckpointError(
            f"{file.path}: the types of its {len(tokens)} tokens are {str(kinds)[:40]}; a byte-level "
            f"BPE has one of {(NORMAL, CONTROL, USER_DEFINED, UNUSED)} for each. Convert it again"
        )
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    if any(not left or not right or " " in right for left, right in pairs):
        raise CheckpointError(f"{file.path}: a merge is not two tokens. Convert it again")
    return tokens, pairs, kinds


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)
