"""Captions: one line a file, whatever is killed, damaged or begun twice."""

import fcntl
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tailorbird
from released import CFG, make_processor, write_released
from small_gguf import Gguf
from tailorbird.data.video import encode
from tailorbird.errors import ConfigError, DataError, StorageError
from tailorbird.infer.chat import ChatModel, ask
from tailorbird.infer.config import ImageOptions, Sampling
from tailorbird.recipes.captions import Captioned, caption, find_media

SHORT = Sampling(max_tokens=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ChatModel:
    folder = tmp_path_factory.mktemp("models") / "vlm"
    write_released(folder, replace(CFG, decoder=replace(CFG.decoder, max_positions=200)))
    return tailorbird.load_vlm(folder, device="cpu", images=ImageOptions(split=False))


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """Two pictures, a film, a text, and a picture that is none."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "media"
    (folder / "inner").mkdir(parents=True)
    for name in ("b.png", "inner/a.jpg"):
        Image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(folder / name)
    frames = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    (folder / "c.mp4").write_bytes(encode(frames, 2))
    (folder / "notes.txt").write_text("no picture")
    (folder / "d.webp").write_text("no picture either")
    return folder


def run(model: ChatModel, files: list[Path], out: Path, question: str = "what?") -> Captioned:
    asked = {"model": "a/model", "question": question}
    return caption(model, files, out, question=question, sampling=SHORT, asked=asked)


def read(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_folders_give_their_pictures_and_videos_in_order_and_each_once(media: Path) -> None:
    found = find_media([media / "inner/a.jpg", media])
    assert [str(file.relative_to(media)) for file in found] == ["inner/a.jpg", "b.png", "c.mp4", "d.webp"]
    assert find_media([media / "notes.txt"]) == [media / "notes.txt"], "what is named is tried"


def test_paths_without_media_are_refused(media: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none does not exist: name pictures, videos, or folders"):
        find_media([tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no picture or video in .*empty"):
        find_media([tmp_path / "empty"])


def test_every_file_gets_a_line_and_a_damaged_one_is_named(model: ChatModel, media: Path) -> None:
    out = media / "captions.jsonl"
    done = run(model, find_media([media]), out)
    assert (done.new, done.before, len(done.refused)) == (3, 0, 1)
    assert "d.webp is no picture" in done.refused[0]
    lines = read(out)
    assert [Path(str(line["file"])).name for line in lines] == ["b.png", "c.mp4", "a.jpg"]
    assert {line["model"] for line in lines} == {"a/model"}
    alone = model.chat(ask("what?", images=[media / "b.png"]), SHORT)
    assert lines[0]["caption"] == alone.text.strip()
    assert lines[0]["tokens"] == len(alone.ids)


def test_a_second_run_captions_only_what_is_new(model: ChatModel, media: Path) -> None:
    out = media / "captions.jsonl"
    run(model, [media / "b.png"], out)
    before = out.read_text()
    done = run(model, [media / "b.png", media / "inner/a.jpg"], out)
    assert (done.new, done.before) == (1, 1)
    assert out.read_text().startswith(before)
    assert len(read(out)) == 2


def test_a_line_that_a_killed_run_cut_short_is_written_again(model: ChatModel, media: Path) -> None:
    out = media / "captions.jsonl"
    files = [media / "b.png", media / "inner/a.jpg"]
    run(model, files, out)
    whole = read(out)
    out.write_bytes(out.read_bytes()[:-7])
    done = run(model, files, out)
    assert (done.new, done.before) == (1, 1)
    assert [line["caption"] for line in read(out)] == [line["caption"] for line in whole]


def test_another_question_does_not_go_into_the_same_file(model: ChatModel, media: Path) -> None:
    out = media / "captions.jsonl"
    run(model, [media / "b.png"], out)
    with pytest.raises(ConfigError, match=r"line 1, answers .*choose another --out"):
        run(model, [media / "b.png"], out, question="why?")


@pytest.mark.parametrize(
    "content", [b"precious\n", b"precious", b"\x89PNG\r\n\x1a\n\x00", b"{}\n", b"[1]\n[2"]
)
def test_a_file_of_something_else_is_neither_appended_to_nor_cut(
    model: ChatModel, media: Path, content: bytes
) -> None:
    out = media / "notes.jsonl"
    out.write_bytes(content)
    with pytest.raises(DataError, match=r"notes\.jsonl.* no caption: choose another --out"):
        run(model, [media / "b.png"], out)
    assert out.read_bytes() == content


def test_a_first_line_that_was_cut_short_is_written_again(model: ChatModel, media: Path) -> None:
    out = media / "captions.jsonl"
    out.write_text('{"fi')
    assert run(model, [media / "b.png"], out).new == 1
    assert len(read(out)) == 1


def test_a_file_is_the_same_however_its_path_is_written(
    model: ChatModel, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = media / "captions.jsonl"
    run(model, [media / "b.png"], out)
    monkeypatch.chdir(media)
    assert run(model, [Path("inner/../b.png")], out).before == 1


def test_a_name_that_is_no_text_is_kept(model: ChatModel, media: Path) -> None:
    odd = media / os.fsdecode(b"\xff.png")
    (media / "b.png").rename(odd)
    out = media / "captions.jsonl"
    assert run(model, [odd], out).new == 1
    assert run(model, [odd], out).before == 1


def test_two_processes_do_not_write_into_one_file(model: ChatModel, media: Path) -> None:
    out = media / "captions.jsonl"
    with out.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="another process captions into"):
            run(model, [media / "b.png"], out)
    assert run(model, [media / "b.png"], media / "others.jsonl").new == 1


def test_a_language_model_is_refused_before_the_first_file(media: Path) -> None:
    blind = tailorbird.load_vlm(Gguf().write(media / "words.gguf"), device="cpu")
    with pytest.raises(ConfigError, match="sees nothing: name a vision-language model"):
        run(blind, [media / "b.png"], media / "captions.jsonl")


def test_a_file_that_makes_too_long_a_prompt_is_left_out_like_a_damaged_one(
    model: ChatModel, media: Path
) -> None:
    split = ChatModel(model.model, make_processor(), model.end_ids)
    done = run(split, [media / "b.png", media / "c.mp4"], media / "captions.jsonl", "very " * 40)
    assert done.new == 0
    assert all("does not fit the model's context" in reason for reason in done.refused)
