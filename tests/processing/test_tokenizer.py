"""Words to token ids."""

import pickle

import pytest
import torch
from tokenizers import Tokenizer

from tailorbird.errors import DataError
from tailorbird.processing.text import InstructionTokenizer, train_tokenizer

CORPUS = ["push the puck to the goal", "open the drawer", "close the door", "open the window"]


@pytest.fixture(scope="module")
def json() -> str:
    return train_tokenizer(CORPUS, 300)


@pytest.fixture
def tokenizer(json: str) -> InstructionTokenizer:
    return InstructionTokenizer(json, 64)


@pytest.mark.parametrize(
    "text",
    [
        "open the drawer",
        "  two  spaces and a tab\t",
        "\u00fcber stra\u00dfe",
        "a\u0301 is not \u00e1",
        "\u6253\u5f00\u62bd\u5c49 \U0001f916",
        "line one\nline two",
        "nothing\x00hidden",
        "",
        "<image> and <pad> are words here",
    ],
)
def test_any_text_comes_back_with_a_newline_behind_it(tokenizer: InstructionTokenizer, text: str) -> None:
    ids, valid = tokenizer([text])
    assert valid.all()
    assert tokenizer.decode(ids[0].tolist()) == text + "\n"


def test_padding_and_image_are_tokens_zero_and_one_and_no_text_becomes_them(
    tokenizer: InstructionTokenizer,
) -> None:
    ids, _ = tokenizer(["<pad><image>"])
    assert ids.min() > 1
    assert tokenizer.decode([0, 1]) == ""


def test_a_worker_process_reads_special_tokens_as_letters_too(tokenizer: InstructionTokenizer) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301 (our own)
    assert torch.equal(copy(["see <image>"])[0], tokenizer(["see <image>"])[0])
    assert copy(["see <image>"])[0].min() > 1


def test_words_of_the_corpus_take_few_tokens(tokenizer: InstructionTokenizer) -> None:
    assert tokenizer.vocab <= 300
    ids, _ = tokenizer([CORPUS[1]])
    assert ids.shape[1] < len(CORPUS[1]) / 2


def test_shorter_instructions_are_padded_on_the_right(tokenizer: InstructionTokenizer) -> None:
    tasks = ["open the drawer", "open", "push the puck to the goal"]
    ids, valid = tokenizer(tasks)
    lengths = [tokenizer([task])[0].shape[1] for task in tasks]
    assert ids.shape == valid.shape == (3, max(lengths))
    for row, (task, length) in enumerate(zip(tasks, lengths, strict=True)):
        assert valid[row].tolist() == [True] * length + [False] * (max(lengths) - length)
        assert (ids[row, length:] == 0).all()
        assert ids[row, :length].tolist() == tokenizer([task])[0][0].tolist()


def test_an_instruction_of_exactly_the_longest_length_is_read_and_one_more_token_is_refused(
    json: str,
) -> None:
    length = InstructionTokenizer(json, 64)(["zyx"])[0].shape[1]
    assert InstructionTokenizer(json, length)(["zyx"])[0].shape == (1, length)
    with pytest.raises(DataError, match=f"'zyx' has {length} tokens, the policy reads {length - 1}: shorten"):
        InstructionTokenizer(json, length - 1)(["zyx"])


def test_the_same_sentences_in_any_order_train_the_same_tokenizer(json: str) -> None:
    assert train_tokenizer([*reversed(CORPUS), CORPUS[0]], 300) == json
    assert train_tokenizer(CORPUS[:2], 300) != json


@pytest.mark.parametrize("broken", ["", "{", '{"version": "1.0"}'])
def test_a_broken_file_is_an_error_that_names_it(broken: str) -> None:
    with pytest.raises(DataError, match=r"tokenizer\.json cannot be read"):
        InstructionTokenizer(broken, 8)


def test_a_newline_that_is_there_is_not_doubled(tokenizer: InstructionTokenizer) -> None:
    (once, typed), valid = tokenizer(["open it", "open it\n"])
    assert valid.all()
    assert torch.equal(once, typed)


def test_padding_and_cutting_that_a_file_asks_for_are_not_done(json: str) -> None:
    backend = Tokenizer.from_str(json)
    backend.enable_padding(length=40)
    backend.enable_truncation(3)
    ids, valid = InstructionTokenizer(backend.to_str(), 64)(["open the drawer"])
    plain, _ = InstructionTokenizer(json, 64)(["open the drawer"])
    assert torch.equal(ids, plain)
    assert valid.all()
