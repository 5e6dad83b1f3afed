"""A conversation at the terminal: what is typed, what the model hears."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import tailorbird
from released import write_released
from tailorbird.infer.chat import ChatModel
from tailorbird.infer.config import ImageOptions, Sampling
from tailorbird.recipes.talk import answer, talk

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

    def listen(self: ChatModel, messages: Any, *rest: Any) -> Iterator[str]:
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
    talk(model, SHORT, [], typed("one", "", "two"))
    first, second = heard
    assert [message["role"] for message in second] == ["user", "assistant", "user"]
    assert second[0] == first[0]
    assert second[2]["content"] == [{"type": "text", "text": "two"}]


def test_pictures_are_shown_with_the_next_words_and_only_once(
    model: ChatModel, heard: list[Any], tmp_path: Path
) -> None:
    file = tmp_path / "two words.png"
    Image.new("RGB", (8, 9)).save(file)
    talk(model, SHORT, [file], typed("look", f"/image {file}", "again", "/new", "afresh"))
    kinds = [[item["type"] for item in talked[-1]["content"]] for talked in heard]
    assert kinds == [["image", "text"], ["image", "text"], ["text"]]
    assert len(heard[-1]) == 1


def test_mistakes_are_explained_and_the_conversation_goes_on(
    model: ChatModel, heard: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("words")
    talk(model, SHORT, [], typed("/image none.png", "/dance", f"/image {bad}", "look", "/bye", "never"))
    printed = capsys.readouterr().out
    assert "no file none.png" in printed
    assert "nothing is done for '/dance'" in printed
    assert "bad.png is no picture" in printed
    assert len(heard) == 1, "what follows /bye is not read"


def test_an_interrupted_answer_keeps_what_was_said(
    model: ChatModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: Any) -> Iterator[str]:
        yield " a"
        yield " b"
        raise KeyboardInterrupt

    monkeypatch.setattr(ChatModel, "stream", interrupted)
    assert answer(model, [], SHORT) == "a b ..."
    assert "a b" in capsys.readouterr().out
