"""Text that appears while tokens come is the text that they give in the end."""

import random

import pytest
from tokenizers import Tokenizer

from tailorbird.infer.words import Words
from tailorbird.processing.text import train_tokenizer

ALPHABET = "ab \n<end>\u00e4\u00df\u4e2d\u6587\U0001f916\U0001f468\u200d\U0001f469\ufffd\u0301"
CORPUS = ["the drawer is open and the end is near", "\u4e2d\u6587 \u6587\u4e2d", "\U0001f916\U0001f916 ab ab"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_str(train_tokenizer(CORPUS, 330))


def cut_at_stop(text: str, stop: tuple[str, ...]) -> str:
    """Letter by letter: the first stop string that is complete ends the text before its beginning."""
    for end in range(1, len(text) + 1):
        if starts := [end - len(word) for word in stop if text[:end].endswith(word)]:
            return text[: min(starts)]
    return text


def say(words: Words, ids: list[int]) -> list[str]:
    return [*(words.feed([id_]) for id_ in ids), words.flush()]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "stop", [(), ("<end>",), ("ab", "b \n", "\U0001f916"), ("end>", "<end> ", "n", "aa")]
)
def test_pieces_joined_are_the_decoded_text_up_to_the_stop(
    tokenizer: Tokenizer, seed: int, stop: tuple[str, ...]
) -> None:
    chance = random.Random(seed)
    for _ in range(40):
        text = "".join(
            chance.choice([*ALPHABET, "<end>", "<en", "the "]) for _ in range(chance.randrange(25))
        )
        ids = tokenizer.encode(text).ids
        words = Words(tokenizer.decode, stop)
        pieces = say(words, ids)
        assert "".join(pieces) == cut_at_stop(text, stop)
        assert words.stopped == any(word in text for word in stop)


@pytest.mark.parametrize("seed", range(6))
def test_bytes_that_are_no_text_come_out_as_the_decoder_writes_them(tokenizer: Tokenizer, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(40):
        ids = [chance.randrange(tokenizer.get_vocab_size()) for _ in range(chance.randrange(30))]
        assert "".join(say(Words(tokenizer.decode), ids)) == tokenizer.decode(ids)


def test_a_character_is_shown_when_its_last_byte_is_there(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a\U0001d11eb").ids
    assert len(ids) == 6
    assert say(Words(tokenizer.decode), ids) == ["a", "", "", "", "\U0001d11e", "b", ""]


def test_half_a_character_at_the_end_is_shown_as_broken(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a\U0001d11e").ids[:3]
    assert say(Words(tokenizer.decode), ids) == ["a", "", "", "\ufffd"]


def spell(ids: list[int]) -> str:
    return "".join(map(chr, ids))


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    assert say(Words(spell, ["stop"]), [*map(ord, "as s sto")]) == [
        "a",
        "",
        "s ",
        "",
        "s ",
        "",
        "",
        "",
        "sto",
    ]


def test_nothing_follows_a_stop_string() -> None:
    words = Words(spell, ["b"])
    assert say(words, [*map(ord, "abcab")]) == ["a", "", "", "", "", ""]
    assert words.stopped


def test_of_two_stop_strings_that_end_together_the_longer_one_is_cut() -> None:
    assert "".join(say(Words(spell, ["end", "the end"]), [*map(ord, "at the end.")])) == "at "


def test_a_decoder_that_drops_the_first_blank_keeps_the_blanks_between_words() -> None:
    def decode(ids: list[int]) -> str:
        return "".join(f" {'abc'[id_]}" for id_ in ids)[1:]

    assert say(Words(decode), [0, 1, 2, 2]) == ["a", " b", " c", " c", ""]
