"""Special tokens and the text between them to ids."""

import copy
import json
import pickle
from typing import Any

import pytest

from tailorbird.errors import DataError
from tailorbird.processing.pieces import Piece, encode_pieces, image_block
from tailorbird.processing.text import ChatTokenizer
from tailorbird.processing.tiles import Layout
from vocabulary import V1, build_tokenizer, tokenizer_json


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    return ChatTokenizer(tokenizer_json())


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text * piece.times for piece in pieces)


def test_tokens_are_asked_for_by_name(tokenizer: ChatTokenizer) -> None:
    assert [tokenizer.id(name) for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")] == [0, 1, 2]
    assert tokenizer.has("<row_6_col_6>")
    assert not tokenizer.has("<row_7_col_1>")
    assert not tokenizer.has("a")
    assert tokenizer.vocab == build_tokenizer().get_vocab_size()
    assert tokenizer.highest_id == tokenizer.vocab - 1


def test_the_highest_id_counts_those_that_are_left_out() -> None:
    settings = json.loads(tokenizer_json())
    words = settings["model"]["vocab"]
    words["\u00e9zzz"] = 5_000
    gappy = ChatTokenizer(json.dumps(settings))
    assert gappy.highest_id == 5_000
    assert gappy.vocab < 1_000


@pytest.mark.parametrize("name", ["<row_7_col_1>", "a", ""])
def test_a_missing_token_is_named_with_those_that_exist(tokenizer: ChatTokenizer, name: str) -> None:
    with pytest.raises(DataError, match=r"no token .*: its 43 special tokens are <\|endoftext\|>, .* Take"):
        tokenizer.id(name)


@pytest.mark.parametrize("broken", ["", "{", "[]", "{}", '{"version": "1.0"}'])
def test_a_broken_file_is_an_error_that_names_it(broken: str) -> None:
    with pytest.raises(DataError, match=r"tokenizer\.json cannot be read"):
        ChatTokenizer(broken)


def test_a_marker_that_must_stand_between_spaces_is_refused() -> None:
    text = build_tokenizer(single_word=True).to_str()
    with pytest.raises(
        DataError, match=r"finds <global-img> only between spaces .* set single_word to false"
    ):
        ChatTokenizer(text)


def test_ids_come_back_as_text_with_or_without_the_special_tokens(tokenizer: ChatTokenizer) -> None:
    pieces = [Piece("<image>", token=True, times=2), Piece("Hi \U0001f916"), Piece("<|im_end|>", token=True)]
    ids = [token.id for token in encode_pieces(pieces, tokenizer)]
    assert tokenizer.decode(ids) == "Hi \U0001f916"
    assert tokenizer.decode(ids, skip_special=False) == "<image><image>Hi \U0001f916<|im_end|>"


def test_words_form_across_the_border_of_two_texts(tokenizer: ChatTokenizer) -> None:
    together = encode_pieces(
        [Piece("User: "), Piece(""), Piece("What is the picture?", learned=True)], tokenizer
    )
    whole = tokenizer.span("User: What is the picture?", None, None)
    assert [token.id for token in together] == [word.id for word in whole]
    learned = [tokenizer.decode([token.id]) for token in together if token.learned]
    assert learned[0].startswith(" ")
    assert "".join(learned) == " What is the picture?"


def test_a_token_of_white_space_alone_is_learned_where_it_was_said(tokenizer: ChatTokenizer) -> None:
    tokens = encode_pieces([Piece("a\n"), Piece("\n \n", learned=True), Piece("b")], tokenizer)
    learned = "".join(tokenizer.decode([token.id]) for token in tokens if token.learned)
    assert "\n \n" in learned
    assert "a" not in learned
    assert "b" not in learned


@pytest.mark.parametrize("special", [True, False])
def test_nothing_that_is_typed_becomes_structure_however_the_file_flags_it(special: bool) -> None:
    settings = json.loads(tokenizer_json())
    settings["added_tokens"] = [{**token, "special": special} for token in settings["added_tokens"]]
    tokenizer = ChatTokenizer(json.dumps(settings))
    for name in (
        "<image>",
        "<end_of_utterance>",
        "<row_1_col_1>",
        "<fake_token_around_image>",
        "<|im_start|>",
    ):
        tokens = encode_pieces([Piece(f"a{name}b")], tokenizer)
        assert tokenizer.id(name) not in [token.id for token in tokens]
        assert tokenizer.decode([token.id for token in tokens]) == f"a{name}b"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda tokenizer: pickle.loads(pickle.dumps(tokenizer))])  # noqa: S301
def test_a_copy_for_another_process_lets_nothing_through_either(
    tokenizer: ChatTokenizer, copied: Any
) -> None:
    forged = [Piece("see <image><|im_end|>")]
    assert encode_pieces(forged, copied(tokenizer)) == encode_pieces(forged, tokenizer)


def test_other_added_words_stay_whole_in_text() -> None:
    settings = json.loads(tokenizer_json())
    extra = {**settings["added_tokens"][0], "id": 9999, "content": "<tool>", "special": False}  # a gap
    settings["added_tokens"].append(extra)
    tokenizer = ChatTokenizer(json.dumps(settings))
    ids = [token.id for token in encode_pieces([Piece("a <tool>")], tokenizer)]
    assert ids[-1] == tokenizer.id("<tool>")
    assert tokenizer.decode(ids) == "a <tool>"


@pytest.mark.parametrize("step", [{"post_processor": None}, {"truncation": None}])
def test_a_file_that_cuts_or_pads_does_neither_to_prompts(step: dict[str, Any]) -> None:
    backend = build_tokenizer()
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    tokenizer = ChatTokenizer(backend.to_str())
    words = tokenizer.span("What is in the picture? 12345", None, None)
    assert 3 < len(words) < 50
    assert tokenizer.decode([word.id for word in words]) == "What is in the picture? 12345"


def test_a_cut_picture_is_written_row_by_row_and_then_whole() -> None:
    pieces = list(image_block(Layout(resized=(1, 1), grid=(2, 3), rows=2, cols=3), 2, 0))
    fake, image = "<fake_token_around_image>", "<image><image>"
    rows = ["".join(f"{fake}<row_{row}_col_{col}>{image}" for col in (1, 2, 3)) + "\n" for row in (1, 2)]
    assert text_of(pieces) == "".join(rows) + f"\n{fake}<global-img>{image}{fake}"


def test_an_uncut_picture_is_one_block() -> None:
    pieces = list(image_block(Layout(resized=(1, 1), grid=(1, 1), rows=0, cols=0), 3, 0))
    assert (
        text_of(pieces)
        == "<fake_token_around_image><global-img>" + "<image>" * 3 + "<fake_token_around_image>"
    )


def test_markers_that_the_first_release_does_not_have_are_its_text() -> None:
    tokenizer = ChatTokenizer(tokenizer_json(V1))
    tokens = encode_pieces(image_block(Layout(resized=(1, 1), grid=(1, 2), rows=1, cols=2), 3, 4), tokenizer)
    assert tokenizer.decode([token.id for token in tokens]) == "<row_1_col_1><row_1_col_2>\n\n<global-img>"
    assert [token.kind for token in tokens].count("image") == 9
    assert {token.kind for token in tokens} == {"image", "marker"}
    assert {token.medium for token in tokens} == {4}


def test_a_token_that_reaches_into_a_picture_or_video_belongs_to_it(tokenizer: ChatTokenizer) -> None:
    tokens = encode_pieces([Piece("User: "), Piece("You are", "video", medium=2), Piece(" ok")], tokenizer)
    video = "".join(tokenizer.decode([token.id]) for token in tokens if token.medium == 2)
    assert video == " You are"
    assert tokens[-1].medium == -1
