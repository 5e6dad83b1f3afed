"""Text towers from GGUF files: what is read, and what is refused in one line."""

import builtins
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from tokenizers import Tokenizer

from small_gguf import CONFIG, F16, F32, MERGES, Q8_0, TOKENS, Gguf, random_weights, stored_as
from tailorbird.checkpoint.gguf import read_gguf
from tailorbird.checkpoint.gguf_file import open_gguf
from tailorbird.errors import CheckpointError, ConfigError, TailorbirdError


@pytest.mark.parametrize("tied", [True, False], ids=["tied head", "own head"])
@pytest.mark.parametrize("kind", [F32, F16, Q8_0], ids=lambda kind: kind.name)
def test_weights_come_back_as_they_were_stored(
    kind: gguf.GGMLQuantizationType, tied: bool, tmp_path: Path
) -> None:
    cfg = replace(CONFIG, tied=tied)
    weights = random_weights(cfg)
    tower = read_gguf(Gguf(cfg=cfg, kind=kind).write(tmp_path / "a.gguf", weights))
    assert tower.model.cfg == cfg
    found = tower.model.state_dict()
    assert found.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(found[name], stored_as(value, kind)), name


def test_weights_are_converted_to_the_dtype_that_is_asked_for(tmp_path: Path) -> None:
    path = Gguf().write(tmp_path / "a.gguf")
    whole, half = read_gguf(path).model.state_dict(), read_gguf(path, dtype=torch.bfloat16).model.state_dict()
    assert all(torch.equal(half[name], value.bfloat16()) for name, value in whole.items())


def test_the_tokenizer_merges_words_and_cuts_digits(tmp_path: Path) -> None:
    words = Tokenizer.from_str(read_gguf(Gguf().write(tmp_path / "a.gguf")).tokenizer)
    assert words.encode("hello the").tokens == ["hello", "\u0120the"]
    assert words.encode("a  12").tokens == ["a", "\u0120", "\u0120", "1", "2"]
    assert words.encode("<|im_start|>he").ids == [1, TOKENS.index("he")]
    assert [words.id_to_token(i) for i in range(len(TOKENS))] == TOKENS
    assert words.decode(words.encode("he said: \u00e9\n").ids) == "he said: \u00e9\n"


def test_end_ids_and_chat_template_are_read(tmp_path: Path) -> None:
    tower = read_gguf(Gguf(metadata={"tokenizer.chat_template": "{{ 1 }}"}).write(tmp_path / "a.gguf"))
    assert (tower.end_ids, tower.template) == ({2}, "{{ 1 }}")


def test_a_file_without_kv_heads_and_rope_base_has_those_of_the_format(tmp_path: Path) -> None:
    cfg = replace(CONFIG, num_kv_heads=4, rope_theta=10_000.0)
    gone = {"llama.attention.head_count_kv": None, "llama.rope.freq_base": None, "llama.vocab_size": None}
    assert read_gguf(Gguf(cfg=cfg, metadata=gone).write(tmp_path / "a.gguf")).model.cfg == cfg


def test_our_reader_finds_what_the_package_finds(tmp_path: Path) -> None:
    path = Gguf(kind=Q8_0, metadata={"general.flag": True}).write(tmp_path / "a.gguf")
    ours, theirs = open_gguf(path), gguf.GGUFReader(path)
    fields = {name: value.contents() for name, value in theirs.fields.items() if not name.startswith("GGUF.")}
    assert ours.metadata == fields
    assert ours.places.keys() == {tensor.name for tensor in theirs.tensors}
    for tensor in theirs.tensors:
        place = ours.places[tensor.name]
        assert (place.start, place.num_bytes, place.kind) == (
            tensor.data_offset,
            tensor.n_bytes,
            tensor.tensor_type,
        )
        assert place.shape == tuple(reversed(tensor.shape.tolist()))


def refusal(read: Callable[[], Any]) -> str:
    with pytest.raises(TailorbirdError) as caught:
        read()
    assert isinstance(caught.value, CheckpointError)
    message = str(caught.value)
    assert "\n" not in message
    return message


SIZE = "llama."
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another architecture": ({"architecture": "qwen2"}, "holds a 'qwen2' model, 'llama' can be read"),
    "a missing size": ({"metadata": {SIZE + "block_count": None}}, "block_count is None"),
    "a size that is no number": ({"metadata": {SIZE + "embedding_length": "x"}}, "embedding_length is 'x'"),
    "a size of nothing": ({"metadata": {SIZE + "attention.head_count": 0}}, "head_count is 0"),
    "heads in every layer": (
        {"metadata": {SIZE + "attention.head_count_kv": [2, 1]}},
        "head_count_kv is [2, 1]",
    ),
    "no epsilon": ({"metadata": {SIZE + "attention.layer_norm_rms_epsilon": None}}, "rms_epsilon is None"),
    "an endless base": ({"metadata": {SIZE + "rope.freq_base": float("inf")}}, "freq_base is inf"),
    "heads that do not group": ({"metadata": {SIZE + "attention.head_count_kv": 3}}, "must be a multiple"),
    "heads that turn in part": (
        {"metadata": {SIZE + "rope.dimension_count": 8}},
        "heads of 16 of which 8 turn",
    ),
    "more blocks than tensors": (
        {"metadata": {SIZE + "block_count": 2**28 - 1}},
        "announces 268435455 blocks",
    ),
    "fewer blocks than tensors": ({"metadata": {SIZE + "block_count": 1}}, "in no rule ['blk.1."),
    "another width": ({"metadata": {SIZE + "embedding_length": 64}}, "token_embd.weight has shape (265, 32)"),
    "another vocabulary": ({"metadata": {SIZE + "vocab_size": 300}}, "265 tokens, the model 300"),
    "stretched positions": ({"metadata": {SIZE + "rope.scaling.type": "yarn"}}, "sets ['rope.scaling.type']"),
    "experts": ({"metadata": {SIZE + "expert_count": 8}}, "sets ['expert_count']"),
    "a missing tensor": ({"tensors": {"blk.1.ffn_up.weight": None}}, "tensors"),
    "a missing norm": ({"tensors": {"output_norm.weight": None}}, "output_norm.weight"),
    "no embedding": ({"tensors": {"token_embd.weight": None}}, "lacks token_embd.weight"),
    "an unknown tensor": ({"tensors": {"rope_freqs.weight": torch.ones(8)}}, "rope_freqs.weight"),
    "a tensor of another shape": (
        {"tensors": {"blk.1.ffn_down.weight": torch.ones(32, 32)}},
        "decoder.blocks.1.mlp.down.weight has shape (32, 32), the model needs (32, 64)",
    ),
    "sentencepiece": ({"metadata": {"tokenizer.ggml.model": "llama"}}, "kind 'llama' split as 'smollm'"),
    "an unknown split": (
        {"metadata": {"tokenizer.ggml.pre": "qwen2"}},
        "split as 'qwen2'; byte-level BPE (gpt2) split as gpt-2 or smollm can be read",
    ),
    "no tokens": ({"metadata": {"tokenizer.ggml.tokens": None}}, "lacks tokens or merges"),
    "a merge of three": ({"metadata": {"tokenizer.ggml.merges": ["h e l"]}}, "a merge is not two tokens"),
    "a merge of strangers": ({"metadata": {"tokenizer.ggml.merges": ["h xyz"]}}, "tokenizer is damaged"),
    "too few types": ({"metadata": {"tokenizer.ggml.token_type": [1, 1]}}, "the types of its 265 tokens"),
    "several ends": ({"metadata": {"tokenizer.ggml.eos_token_id": [2, 1]}}, "eos_token_id is [2, 1], one of"),
    "an end in words": ({"metadata": {"tokenizer.ggml.eos_token_id": "2"}}, "eos_token_id is '2', one of"),
    "an end beyond the words": (
        {"metadata": {"tokenizer.ggml.eos_token_id": 265}},
        "eos_token_id is 265, one of 265 tokens is needed",
    ),
    "a template of numbers": (
        {"metadata": {"tokenizer.chat_template": 3}},
        "tokenizer.chat_template is 3, a text is needed",
    ),
    "a number of tokens": ({"metadata": {"tokenizer.ggml.tokens": 265}}, "lacks tokens or merges"),
    "several splits": (
        {"metadata": {"tokenizer.ggml.pre": ["smollm", "gpt-2"]}},
        "tokenizer.ggml.pre is ['smollm', 'gpt-2'], a text is needed",
    ),
    "an endless size": (
        {"metadata": {SIZE + "block_count": list(range(100_000))}},
        "block_count is [0, 1, 2, 3, 4, 5, ...], a number",
    ),
    "byte tokens": (
        {"metadata": {"tokenizer.ggml.token_type": [6] * 265}},
        "has one of (1, 3, 4, 5) for each",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_is_not_what_we_read_is_refused_by_name(case: str, tmp_path: Path) -> None:
    changes, expected = WRONG[case]
    path = Gguf(**changes).write(tmp_path / "a.gguf")
    message = refusal(lambda: read_gguf(path))
    assert expected in message
    assert str(path) in message


def test_what_is_no_gguf_is_refused(tmp_path: Path) -> None:
    for name, content in {"empty": b"", "json": b"{}", "other": b"PK\x03\x04" * 9}.items():
        path = tmp_path / name
        path.write_bytes(content)
        assert "is no GGUF file" in refusal(lambda path=path: read_gguf(path))  # type: ignore[misc]
    assert "cannot be read (No such file" in refusal(lambda: read_gguf(tmp_path / "none.gguf"))
    assert "cannot be read (Is a directory" in refusal(lambda: read_gguf(tmp_path))


def test_another_version_is_refused(tmp_path: Path) -> None:
    path = Gguf().write(tmp_path / "a.gguf")
    content = path.read_bytes()
    path.write_bytes(content[:4] + struct.pack("<I", 1) + content[8:])
    assert "is GGUF version 1" in refusal(lambda: read_gguf(path))


def test_a_file_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    content = Gguf().write(tmp_path / "a.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for length in [4, 7, 23, 30, *range(100, len(content) - 40, len(content) // 60), len(content) - 40]:
        path.write_bytes(content[:length])
        assert "is cut or damaged" in refusal(lambda: read_gguf(path))


@pytest.mark.parametrize(
    ("at", "value"), [(8, 2**63), (16, 2**63), (24, 2**62)], ids=["tensors", "fields", "length of a name"]
)
def test_a_count_in_the_file_cannot_make_us_work_for_ever(at: int, value: int, tmp_path: Path) -> None:
    path = Gguf().write(tmp_path / "a.gguf")
    content = bytearray(path.read_bytes())
    struct.pack_into("<Q", content, at, value)
    path.write_bytes(content)
    assert "damaged" in refusal(lambda: read_gguf(path))


def test_an_endless_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    field = struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 0, 2**40)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + field + bytes(64))
    assert f"announces {2**40} bytes" in refusal(lambda: read_gguf(path))


def change_tensor(path: Path, name: str, kind: int) -> None:
    """Overwrite a tensor's type in the header."""
    content = bytearray(path.read_bytes())
    at = content.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name)
    (num_dims,) = struct.unpack_from("<I", content, at)
    struct.pack_into("<I", content, at + 4 + 8 * num_dims, kind)
    path.write_bytes(content)


def test_an_unknown_quantisation_is_refused_by_name(tmp_path: Path) -> None:
    path = Gguf().write(tmp_path / "a.gguf")
    change_tensor(path, "blk.0.ffn_up.weight", 99)
    assert "blk.0.ffn_up.weight is stored as type 99" in refusal(lambda: read_gguf(path))
    change_tensor(path, "blk.0.ffn_up.weight", gguf.GGMLQuantizationType.I8)
    assert "blk.0.ffn_up.weight is stored as I8" in refusal(lambda: read_gguf(path))


def test_rows_that_do_not_fill_blocks_are_refused(tmp_path: Path) -> None:
    path = Gguf().write(tmp_path / "a.gguf")
    change_tensor(path, "token_embd.weight", gguf.GGMLQuantizationType.Q6_K)
    assert "shape (265, 32) in blocks of 256" in refusal(lambda: read_gguf(path))


def test_without_the_package_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Gguf().write(tmp_path / "a.gguf")
    real = builtins.__import__

    def without(name: str, *args: Any, **rest: Any) -> Any:
        if name == "gguf":
            raise ImportError(name)
        return real(name, *args, **rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'tailorbird\[gguf\]'"):
        read_gguf(path)


def test_the_tokenizer_is_json_that_lists_its_special_tokens(tmp_path: Path) -> None:
    words = json.loads(read_gguf(Gguf().write(tmp_path / "a.gguf")).tokenizer)
    assert [token["content"] for token in words["added_tokens"] if token["special"]] == TOKENS[:3]
    assert [tuple(merge) for merge in words["model"]["merges"]] == MERGES
