"""The commands about models as typed, and what they say of bad files: one line each."""

import io
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from released import CFG, edit, write_released
from small_gguf import Gguf
from tailorbird.data.video import encode
from tailorbird.infer.chat import Stream
from tailorbird.model.sizes import SMOLVLM2_256M

Typed = Callable[..., tuple[int | str | None, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "vlm"
    write_released(path)
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)).save(
        tmp_path / "photo.png"
    )
    return tmp_path / "photo.png"


def test_a_question_about_two_pictures_and_a_video_is_answered(
    typed: Typed, folder: Path, photo: Path, tmp_path: Path
) -> None:
    edit(
        folder / "config.json",
        text_config={**read(folder / "config.json")["text_config"], "max_position_embeddings": 400},
    )
    (tmp_path / "film.mp4").write_bytes(encode(np.zeros((4, 16, 16, 3), np.uint8), 2))
    media = ("--image", photo, "--image", photo, "--video", tmp_path / "film.mp4")
    end, printed = typed("chat", folder, "--no-split", "--max-tokens", 3, *media, "what?")
    assert end == 0
    assert printed.endswith("\n")


def read(path: Path) -> dict[str, object]:
    return json.loads(path.read_text())


def test_without_a_question_one_talks(typed: Typed, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n/bye\n"))
    end, printed = typed("chat", folder, "--max-tokens", 3)
    assert end == 0
    assert "/image FILE" in printed


def test_a_language_model_file_answers(typed: Typed, tmp_path: Path) -> None:
    file = Gguf().write(tmp_path / "words.gguf")
    assert typed("chat", file, "--max-tokens", 3, "hello")[0] == 0


def test_inspect_needs_no_weights(typed: Typed, folder: Path, photo: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in folder.glob("*.json*"):
        (bare / file.name).write_bytes(file.read_bytes())
    (bare / "chat_template.jinja").write_bytes((folder / "chat_template.jinja").read_bytes())
    end, printed = typed("inspect", bare, "--image", photo, "--out", tmp_path / "tiles.png")
    assert end == 0
    assert "global-img" in printed
    assert (tmp_path / "tiles.png").exists()


def test_inspect_refuses_a_name_that_is_no_picture_before_it_works(typed: Typed, photo: Path) -> None:
    refused(typed("inspect", "no/model", "--image", photo, "--out", "tiles.txt")[0], ".png, .jpg")


def test_a_question_after_a_stop_string_is_a_question(typed: Typed, folder: Path) -> None:
    words = ("--stop", "END", "--stop", "FIN", "--max-tokens", 2, "what is it?")
    end, printed = typed("chat", folder, *words)
    assert end == 0
    assert "/image" not in printed, "no conversation began"


def test_ctrl_c_ends_a_single_answer_with_130(
    typed: Typed, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: Stream) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(Stream, "__next__", interrupt)
    assert typed("chat", folder, "what?")[0] == 130


def test_captions_with_other_settings_do_not_mix(
    typed: Typed, folder: Path, photo: Path, tmp_path: Path
) -> None:
    words = ("describe", photo, "--model", folder, "--out", tmp_path / "a.jsonl", "--no-split")
    assert typed(*words, "--max-tokens", 3)[0] == 0
    refused(typed(*words, "--max-tokens", 4)[0], "choose another --out")


def test_profile_prints_every_component(typed: Typed, folder: Path, photo: Path) -> None:
    end, printed = typed("profile", folder, "--image", photo, "--no-split", "--tokens", 2, "--repeats", 1)
    assert end == 0
    for stage in ("processor", "tokenizer", "preprocessing", "vision", "connector", "prefill", "decode"):
        assert stage in printed


def test_describe_goes_on_after_a_bad_file_and_ends_with_one(
    typed: Typed, folder: Path, photo: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_text("words")
    out = tmp_path / "out" / "captions.jsonl"
    words = ("describe", tmp_path, "--model", folder, "--out", out, "--no-split", "--max-tokens", 3)
    end, printed = typed(*words)
    assert end == 1
    assert "bad.png is no picture" in printed
    assert "1 new, 0 from before, 1 left out" in " ".join(printed.split())
    (tmp_path / "bad.png").unlink()
    assert typed(*words)[0] == 0


@pytest.mark.full
def test_a_chat_with_a_256m_model_about_one_tile_stays_under_a_gigabyte(tmp_path: Path, photo: Path) -> None:
    """Everything counts: Python, libraries, weights in bf16, the picture. Needs Linux."""
    cfg = replace(SMOLVLM2_256M, image_token_id=CFG.image_token_id)
    write_released(tmp_path / "vlm", cfg, torch.bfloat16)
    words = [
        "chat",
        str(tmp_path / "vlm"),
        "--image",
        str(photo),
        "--no-split",
        "--max-tokens",
        "32",
        "what?",
    ]
    code = f"""
import subprocess, sys, resource
done = subprocess.run([sys.executable, "-m", "tailorbird", *{words!r}])
print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    status, peak_kib = map(int, done.stdout.split()[-2:])
    assert status == 0, done.stderr
    print(f"peak memory of chat, 256M in bf16, one tile: {peak_kib / 1e6 * 1.024:.3f} GB")
    assert peak_kib * 1024 < 1.0e9


def bomb(path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(path)


def deep(path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(path)


def cut(path: Path) -> None:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), dtype=np.uint8)).save(out, "JPEG")
    path.write_bytes(out.getvalue()[:2000])


BAD_PICTURES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a truncated JPEG": ("photo.jpg", cut),
    "a decompression bomb": ("bomb.png", bomb),
    "16 bits": ("depth.png", deep),
    "a text renamed": ("words.png", lambda path: path.write_text("words")),
    "an empty file": ("empty.png", lambda path: path.write_bytes(b"")),
    "no file": ("none.png", lambda path: None),
}


@pytest.mark.parametrize(("name", "make"), BAD_PICTURES.values(), ids=BAD_PICTURES.keys())
def test_a_bad_picture_is_one_line_with_its_name(
    typed: Typed, folder: Path, tmp_path: Path, name: str, make: Callable[[Path], object]
) -> None:
    make(tmp_path / name)
    refused(typed("chat", folder, "--image", tmp_path / name, "what?")[0], name)
    refused(typed("inspect", folder, "--image", tmp_path / name, "--out", tmp_path / "x.png")[0], name)
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("content", [b"", b"words", encode(np.zeros((4, 16, 16, 3), np.uint8), 2)[:300]])
def test_a_bad_video_is_one_line_with_its_name(
    typed: Typed, folder: Path, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "film.mp4").write_bytes(content)
    refused(typed("chat", folder, "--video", tmp_path / "film.mp4", "what?")[0], "film.mp4")


@pytest.mark.parametrize("mode", ["CMYK", "P", "L", "1", "RGBA", "turned", "one pixel"])
def test_an_unusual_picture_is_answered(typed: Typed, folder: Path, tmp_path: Path, mode: str) -> None:
    picture = Image.new("RGB", (1, 1) if mode == "one pixel" else (9, 7), (200, 10, 30))
    exif = picture.getexif()
    exif[0x0112] = 6
    changed = picture.convert(mode) if mode in ("CMYK", "P", "L", "1", "RGBA") else picture
    changed.save(tmp_path / "photo.tiff", exif=exif)
    words = ("--image", tmp_path / "photo.tiff", "--no-split", "--max-tokens", 2, "what?")
    assert typed("chat", folder, *words)[0] == 0


def without_a_tensor(folder: Path) -> None:
    change(folder, lambda weights: weights.pop("model.text_model.norm.weight"))


def with_a_renamed_tensor(folder: Path) -> None:
    change(folder, lambda weights: weights.update(other=weights.pop("model.text_model.norm.weight")))


def with_a_wrong_shape(folder: Path) -> None:
    name = "model.text_model.norm.weight"
    change(folder, lambda weights: weights.update({name: weights[name][1:].clone()}))


def change(folder: Path, how: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    weights = load_file(folder / "model.safetensors")
    how(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def with_cut_weights(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size // 2)


def with_a_huge_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")


def with_an_indivisible_ratio(folder: Path) -> None:
    edit(folder / "config.json", scale_factor=4)


BAD_FOLDERS = {
    "model.safetensors": (
        without_a_tensor,
        with_a_renamed_tensor,
        with_a_wrong_shape,
        with_cut_weights,
        with_a_huge_header,
    ),
    "config.json": (with_an_indivisible_ratio, lambda folder: (folder / "config.json").write_text("{")),
    "tokenizer.json": (lambda folder: (folder / "tokenizer.json").unlink(),),
}


@pytest.mark.parametrize(
    ("name", "damage"), [(name, damage) for name, damages in BAD_FOLDERS.items() for damage in damages]
)
def test_a_bad_checkpoint_is_one_line_with_its_file(
    typed: Typed, tmp_path: Path, name: str, damage: Callable[[Path], object]
) -> None:
    write_released(tmp_path / "vlm")
    damage(tmp_path / "vlm")
    refused(typed("chat", tmp_path / "vlm", "what?")[0], name)


def test_init_refuses_a_ratio_that_does_not_divide_and_lists_those_that_do(
    typed: Typed, tmp_path: Path
) -> None:
    words = ("init", "--vision", "fresh", "--text", Gguf().write(tmp_path / "a.gguf"), "--shuffle", 5)
    end, _ = typed(*words, "--out", tmp_path / "vlm")
    refused(end, "4 (64 tokens)")
    assert not (tmp_path / "vlm").exists()


def refused(end: int | str | None, words: str) -> None:
    assert isinstance(end, str), end
    assert end.startswith("error: ")
    assert words in end
    assert "\n" not in end
    assert len(end) < 500


def test_stored_measurements_are_printed(typed: Typed) -> None:
    end, printed = typed("bench", "loss-gap", "--results", Path(__file__).parents[1] / "results")
    assert end == 0
    assert "transformers, Pillow" in printed
