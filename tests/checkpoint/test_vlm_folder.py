"""A VLM as a folder: what goes in comes out, older layouts are read, contradictions are refused by name."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from released import CFG, END_ID, IMAGE_ID, edit, make_model, make_processor, write_released
from tailorbird.checkpoint.vlm import VLMFolder, read_vlm, write_vlm
from tailorbird.errors import CheckpointError
from tailorbird.processing.chat import SMOLVLM
from tailorbird.processing.processor import Processor
from tailorbird.processing.video import VideoSpec

FILES = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "it"
    write_released(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "it")


def refused(folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read_vlm(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def assert_same_processor(ours: Processor, expected: Processor) -> None:
    assert ours.tokenizer.json == expected.tokenizer.json
    assert replace(ours, tokenizer=expected.tokenizer) == expected


def test_a_folder_comes_back_bit_for_bit(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == FILES
    found = read_vlm(folder)
    assert isinstance(found, VLMFolder)
    assert found.model.cfg == CFG
    assert found.end_ids == {END_ID}
    assert_same_processor(found.processor, make_processor())
    expected = make_model().state_dict()
    weights = found.model.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


def test_writing_again_replaces_the_folder_and_leaves_nothing_of_it(tmp_path: Path) -> None:
    write_released(tmp_path / "it", shard_bytes=30_000)
    write_released(tmp_path / "it")
    assert {path.name for path in (tmp_path / "it").iterdir()} == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_weights_that_are_refused_leave_the_old_folder_as_it_was(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    weights = make_model().state_dict()
    processor = make_processor()

    def write(**changes: Any) -> None:
        given = {"weights": weights, "cfg": CFG, "processor": processor, "end_ids": frozenset({1}), **changes}
        write_vlm(folder, **given)

    with pytest.raises(CheckpointError, match=r"the model lacks 1 tensors"):
        write(weights={name: value for name, value in weights.items() if name != "head.weight"})
    with pytest.raises(CheckpointError, match=r"weights mix \['float16', 'float32'\], convert them to one"):
        write(weights={**weights, "head.weight": weights["head.weight"].half()})
    with pytest.raises(CheckpointError, match=r"\[301\] end nothing in a vocabulary of 301: give those"):
        write(end_ids=frozenset({301}))
    with pytest.raises(CheckpointError, match=r"\[\] end nothing"):
        write(end_ids=frozenset())
    with pytest.raises(CheckpointError, match=r"tiles of 37 px and 4 tokens, the model reads 37 px and 9"):
        write(processor=replace(processor, tokens_per_tile=4))
    assert (folder / "model.safetensors").read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == ["it"]


def test_settings_that_the_release_does_not_know_come_back_too(tmp_path: Path) -> None:
    processor = make_processor()
    processor = replace(processor, tiles=replace(processor.tiles, split=False, upscale=False))
    write_vlm(tmp_path / "it", make_model().state_dict(), CFG, processor, end_ids=frozenset({END_ID, 2}))
    found = read_vlm(tmp_path / "it")
    assert_same_processor(found.processor, processor)
    assert found.end_ids == {END_ID, 2}


def nested(folder: Path) -> None:
    """As transformers 5 saves a processor."""
    pictures, videos = (
        json.loads((folder / f"{part}preprocessor_config.json").read_text()) for part in ("", "video_")
    )
    sampling = videos.pop("video_sampling")
    videos |= {"fps": sampling["fps"], "num_frames": sampling["max_frames"], "return_metadata": False}
    del pictures["video_sampling"]
    edit(folder / "processor_config.json", image_processor=pictures, video_processor=videos)
    edit(folder / "preprocessor_config.json", size={"longest_edge": 1}, resample=3)
    edit(folder / "video_preprocessor_config.json", size={"longest_edge": 1})


def template_in(name: str, as_list: bool) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "chat_template.jinja").unlink()
        several = [{"name": "tools", "template": "x"}, {"name": "default", "template": SMOLVLM.template}]
        edit(folder / name, chat_template=several if as_list else SMOLVLM.template)

    return change


def sized_by_sampling(folder: Path) -> None:
    edit(folder / "video_preprocessor_config.json", size=None)


def end_in_config(folder: Path) -> None:
    (folder / "generation_config.json").unlink()


def end_as_list(folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=[END_ID], bos_token_id=0, _from_model_config=True)


@pytest.mark.parametrize(
    "change",
    [
        nested,
        template_in("chat_template.json", False),
        template_in("processor_config.json", False),
        template_in("tokenizer_config.json", False),
        template_in("tokenizer_config.json", True),
        sized_by_sampling,
        end_in_config,
        end_as_list,
        lambda folder: edit(folder / "processor_config.json", image_seq_len=None),
        lambda folder: (folder / "processor_config.json").unlink(),
        lambda folder: (folder / "tokenizer_config.json").unlink(),
        lambda folder: edit(folder / "config.json", pad_token_id=128002),
        lambda folder: edit(
            folder / "preprocessor_config.json", crop_size=None, rescale_factor=0.00392156862
        ),
    ],
    ids=[
        "processors in one file",
        "template in chat_template.json",
        "template in processor_config.json",
        "template in tokenizer_config.json",
        "named templates",
        "size of frames beside their rate",
        "end in config.json",
        "ends as a list",
        "no count of image tokens",
        "no processor_config.json",
        "no tokenizer_config.json",
        "padding beyond the vocabulary",
        "fields that say the same",
    ],
)
def test_other_layouts_say_the_same(folder: Path, change: Callable[[Path], None]) -> None:
    change(folder)
    found = read_vlm(folder)
    assert_same_processor(found.processor, make_processor())
    assert found.end_ids == {END_ID}


def test_a_release_without_video_settings_takes_its_frames_as_its_pictures(folder: Path) -> None:
    (folder / "video_preprocessor_config.json").unlink()
    edit(folder / "preprocessor_config.json", video_sampling={"fps": 3, "max_frames": 5, "video_size": None})
    expected = VideoSpec(max_frames=5, fps=3, longest_edge=74)
    assert read_vlm(folder).processor.video == expected
    assert (folder / "preprocessor_config.json").exists()
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    del settings["video_sampling"]
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    assert read_vlm(folder).processor.video == VideoSpec(longest_edge=74)


def test_missing_sizes_are_the_defaults_of_the_reference(folder: Path) -> None:
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        edit(folder / name, size=None, video_sampling=None, do_resize=None, resample=None)
    found = read_vlm(folder).processor
    assert (found.tiles.longest_edge, found.video.longest_edge) == (1456, 1456)
    edit(folder / "preprocessor_config.json", max_image_size=None)
    refused(folder, r"preprocessor_config\.json: max_image_size makes tiles of 364 px, .* reads 37 px")


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "chat_template.jinja", "preprocessor_config.json"]
)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    if name == "preprocessor_config.json":
        (folder / "video_preprocessor_config.json").unlink()
    refused(folder, rf"{name} is missing")


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "video_preprocessor_config.json",
    ],
)
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe\x00", b"[" * 200_000, b'{"a":' + b"9" * 5000 + b"}"],
    ids=["empty", "cut", "a list", "no text", "nested without end", "a number without end"],
)
def test_a_broken_file_is_named(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    refused(folder, rf"{name}.*([Rr]estore|[Ff]etch)")


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", r"nowhere/config\.json is missing: save or fetch")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("preprocessor_config.json", {"resample": 3}, r"resample is 3, and only 1 is supported"),
        ("preprocessor_config.json", {"image_mean": [0.4, 0.5, 0.5]}, r"image_mean is \[0\.4, "),
        ("preprocessor_config.json", {"image_std": [1, 1, 1]}, r"image_std is \[1, "),
        ("preprocessor_config.json", {"rescale_factor": 1.0}, r"rescale_factor is 1\.0"),
        ("preprocessor_config.json", {"do_resize": False}, r"do_resize is False"),
        ("preprocessor_config.json", {"do_rescale": False}, r"do_rescale is False"),
        ("preprocessor_config.json", {"do_normalize": False}, r"do_normalize is False"),
        ("preprocessor_config.json", {"do_pad": False}, r"do_pad is False"),
        ("preprocessor_config.json", {"do_convert_rgb": False}, r"do_convert_rgb is False"),
        ("preprocessor_config.json", {"do_image_splitting": 1}, r"do_image_splitting is 1 .*true or false"),
        ("preprocessor_config.json", {"size": {"height": 3, "width": 3}}, r"size is .*'longest_edge'"),
        ("preprocessor_config.json", {"max_image_size": {"longest_edge": 36}}, r"tiles of 36 px"),
        ("video_preprocessor_config.json", {"resample": 3}, r"video_preprocessor_config\.json: resample"),
        ("video_preprocessor_config.json", {"video_sampling": 3}, r"video_sampling is 3"),
        ("video_preprocessor_config.json", {"video_sampling": {"fps": "1"}}, r"fps is '1'"),
        ("video_preprocessor_config.json", {"video_sampling": {"max_frames": 2.5}}, r"max_frames is 2\.5"),
        ("video_preprocessor_config.json", {"video_sampling": {"max_frames": 0}}, r"must be positive"),
        ("processor_config.json", {"image_seq_len": 64}, r"image_seq_len is 64, .* a tile has 9 tokens"),
        ("processor_config.json", {"image_processor": 3}, r"image_processor is no object"),
        ("preprocessor_config.json", {"size": {"longest_edge": 10**30}}, r"size is .*'longest_edge'"),
        ("video_preprocessor_config.json", {"video_sampling": {"max_frames": 10**30}}, r"max_frames is 10+"),
        ("video_preprocessor_config.json", {"video_sampling": {"fps": float("inf")}}, r"fps"),
        ("config.json", {"image_token_id": 0}, rf"id of <image> is {IMAGE_ID}, image_token_id .* is 0"),
        ("config.json", {"scale_factor": 4}, r"config\.json: a grid of 6 patches .* does not divide by"),
        ("generation_config.json", {"eos_token_id": 301}, r"eos_token_id is 301, which names none of 301"),
        ("generation_config.json", {"eos_token_id": []}, r"eos_token_id is \[\]"),
        ("generation_config.json", {"eos_token_id": [3, True]}, r"eos_token_id is \[3, True\]"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(
    folder: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    edit(folder / name, **changes)
    refused(folder, message)


def test_words_beyond_the_vocabulary_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = 200
    (folder / "config.json").write_text(json.dumps(config))
    refused(
        folder, r"tokenizer\.json has words with ids up to \d+, the model of config\.json 200 rows: fetch"
    )


def test_a_tokenizer_whose_ids_have_holes_cannot_name_rows_that_are_not_there(folder: Path) -> None:
    words = json.loads((folder / "tokenizer.json").read_text())
    vocab = words["model"]["vocab"]
    assert len(vocab) < CFG.decoder.vocab
    vocab[max(vocab, key=vocab.__getitem__)] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(words))
    refused(
        folder, r"tokenizer\.json has words with ids up to 5000, the model of config\.json 301 rows: fetch"
    )


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("text_config", {"num_hidden_layers": 2**28}, r"has \d+ tensors, too few for the 268435458 layers"),
        ("vision_config", {"num_hidden_layers": 2**28}, r"has \d+ tensors, too few for the 268435459 layers"),
        (
            "text_config",
            {"head_dim": 2**28, "num_attention_heads": 2**28, "hidden_size": 2**28},
            r"no model has such sizes",
        ),
        ("vision_config", {"hidden_size": 3 * 2**26, "intermediate_size": 2**28}, r"is made of"),
    ],
)
def test_sizes_beyond_the_file_are_refused_before_anything_is_built(
    folder: Path, part: str, changes: dict[str, Any], message: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    config[part].update(changes)
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, message)


def test_a_tokenizer_without_the_tokens_of_images_is_refused(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("<image>", "<imago>"))
    refused(folder, r"tokenizer\.json: the tokenizer has no token <image>")
    (folder / "tokenizer.json").write_text(text.replace("<fake_token_around_image>", "<fake>"))
    refused(folder, r"has no token <fake_token_around_image>")


def test_another_chat_template_is_refused_with_its_file(folder: Path) -> None:
    for template in ("{{ messages }}", "{% if %}", ""):
        (folder / "chat_template.jinja").write_text(template)
        refused(folder, r"chat_template\.jinja is none of smolvlm")
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    refused(folder, r"chat_template\.jinja cannot be read .*fetch the checkpoint again")


def test_no_end_at_all_is_refused(folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=None)
    config = json.loads((folder / "config.json").read_text())
    del config["text_config"]["eos_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, r"config\.json: eos_token_id is None, .* so no reply would end: set it")
