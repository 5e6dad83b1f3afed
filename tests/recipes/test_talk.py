"""A conversation at the terminal: what is typed, what the model hears."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import tailorbird
from released import write_released
from tailorbird.infer.chat import ChatModel, Stream, ask
from tailorbird.infer.config import ImageOptions, Sampling
from tailorbird.recipes.talk import Shown, answer, talk

SHORT = Sampling(max_tokens=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ChatModel:
    folder = tmp_path_factory.mktemp("models") / "vlm"
    write_released(folder)
    return tailorbird.load_vlm(folder, device="cpu", images=ImageOptions(split=False))


@pytest.fixture
def heard(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, Any]]]:
    """What reaches the model, which answers all the same."""
    conversations: list[list[dict[str, Any]]] = []
    stream = ChatModel.stream

    def listen(self: ChatModel, messages: Any, *rest: Any) -> Stream:
        conversations.append([*messages])
        return stream(self, messages, *rest)

    monkeypatch.setattr(ChatModel, "stream", listen)
    return conversations


def typed(*lines: str) -> Callable[[str], str]:
    left = iter(lines)

    def read(prompt: str) -> str:
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    return read


def test_the_model_hears_the_whole_conversation(model: ChatModel, heard: list[Any]) -> None:
    talk(model, SHORT, Shown(), typed("one", "", "two"))
    first, second = heard
    assert [message["role"] for message in second] == ["user", "assistant", "user"]
    assert second[0] == first[0]
    assert second[2]["content"] == [{"type": "text", "text": "two"}]


def test_pictures_are_shown_with_the_next_words_and_only_once(
    model: ChatModel, heard: list[Any], tmp_path: Path
) -> None:
    file = tmp_path / "two words.png"
    Image.new("RGB", (8, 9)).save(file)
    talk(model, SHORT, Shown([file]), typed("look", f"/image {file}", "again", "/new", "afresh"))
    kinds = [[item["type"] for item in talked[-1]["content"]] for talked in heard]
    assert kinds == [["image", "text"], ["image", "text"], ["text"]]
    assert len(heard[-1]) == 1


def test_mistakes_are_explained_and_the_conversation_goes_on(
    model: ChatModel, heard: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("words")
    lines = ("/image none.png", "/imgae x.png", "/image", f"/image {bad}", "look", "again", "/bye", "never")
    talk(model, SHORT, Shown(), typed(*lines))
    printed = capsys.readouterr().out
    assert "there is no file none.png" in printed
    assert "there is no /imgae" in printed
    assert "bad.png is no picture" in printed
    assert [len(talked) for talked in heard] == [1, 1], (
        "what is bad is shown once, what follows /bye not read"
    )
    assert heard[1][0]["content"] == [{"type": "text", "text": "again"}]


def test_an_interrupted_answer_is_remembered_as_far_as_it_came(
    model: ChatModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    advance, given = Stream.__next__, 0

    def interrupt(self: Stream) -> str:
        nonlocal given
        given += 1
        if given > 1:
            raise KeyboardInterrupt
        return advance(self)

    monkeypatch.setattr(Stream, "__next__", interrupt)
    said, interrupted = answer(model, ask("one"), SHORT)
    assert interrupted
    assert said
    assert capsys.readouterr().out == f"{said} ...\n"


def test_a_turn_that_was_interrupted_before_its_first_word_never_happened(
    model: ChatModel, heard: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: Stream) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(Stream, "__next__", interrupt)
    talk(model, SHORT, Shown(), typed("one", "two"))
    assert [len(talked) for talked in heard] == [1, 1]


def test_an_answer_that_is_cut_says_so(model: ChatModel, capsys: pytest.CaptureFixture[str]) -> None:
    model_without_end = ChatModel(model.model, model.processor, frozenset())
    model_without_end.end_ids = frozenset()
    answer(model_without_end, ask("one"), SHORT)
    assert "(cut: --max-tokens 3" in capsys.readouterr().out
