"""Pictures as users have them: what is none is refused in one line that names the file and the remedy."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tailorbird.errors import DataError
from tailorbird.processing.picture import BadPicture, open_picture


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)


def test_every_form_of_a_picture_gives_the_same_tensor(pixels: np.ndarray, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.fromarray(pixels).save(file)
    tensor = torch.from_numpy(pixels)
    forms = [file, str(file), file.read_bytes(), Image.open(file), pixels, tensor, tensor.movedim(-1, 0)]
    for form in [*forms, np.ascontiguousarray(pixels.transpose(2, 0, 1)), pixels[:, ::-1][:, ::-1]]:
        assert torch.equal(open_picture(form), tensor)


def test_a_read_only_array_is_taken_and_not_changed(pixels: np.ndarray) -> None:
    pixels.flags.writeable = False
    assert torch.equal(open_picture(pixels), torch.from_numpy(pixels.copy()))


def test_a_grey_array_is_grey_in_colour(pixels: np.ndarray) -> None:
    assert torch.equal(open_picture(pixels[..., 0])[..., 2], torch.from_numpy(pixels[..., 0].copy()))


def test_one_pixel_is_a_picture() -> None:
    assert open_picture(Image.new("RGB", (1, 1), (9, 8, 7))).tolist() == [[[9, 8, 7]]]


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def encoded(picture: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["EPS", "ICNS", "PCX", "TGA", "PDF"])
def test_formats_that_are_not_named_are_not_opened(kind: str, pixels: np.ndarray, tmp_path: Path) -> None:
    file = write(tmp_path / "a.png", encoded(Image.fromarray(pixels), kind))
    with pytest.raises(DataError, match=r"a\.png is no picture in a known format \(JPEG, PNG, .*TIFF, PPM"):
        open_picture(file)


def test_a_cut_file_that_nobody_has_decoded_is_refused(pixels: np.ndarray) -> None:
    whole = encoded(Image.fromarray(pixels.repeat(9, 0).repeat(9, 1)), "JPEG")
    cut, closed = Image.open(io.BytesIO(whole[: len(whole) // 2])), Image.open(io.BytesIO(whole))
    closed.close()
    for lazy in (cut, closed):
        with pytest.raises(DataError, match=r"the picture is damaged \(.+\): fetch or save"):
            open_picture(lazy)


def test_whatever_happens_to_a_file_it_is_a_picture_or_a_data_error(pixels: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(pixels)
    exif = picture.getexif()
    exif[0x0112], exif[0x011A] = 6, 72.5
    for kind in ("JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "PPM"):
        out = io.BytesIO()
        picture.save(out, kind, **({"exif": exif} if kind in ("JPEG", "PNG", "TIFF", "WEBP") else {}))
        whole = np.frombuffer(out.getvalue(), np.uint8)
        for _ in range(120):
            broken = whole.copy()
            for place in rng.integers(0, len(whole), rng.integers(1, 6)):
                broken[place] = rng.integers(256)
            end = len(whole) if rng.random() < 0.7 else int(rng.integers(len(whole)))
            try:
                tensor = open_picture(broken[:end].tobytes())
            except DataError:
                continue
            assert tensor.dtype == torch.uint8
            assert tensor.shape[2:] == (3,)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_cut_file_is_refused_by_name(kind: str, pixels: np.ndarray, tmp_path: Path) -> None:
    whole = encoded(Image.fromarray(pixels.repeat(9, 0).repeat(9, 1)), kind)
    file = write(tmp_path / f"cut.{kind.lower()}", whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.\w+ is (damaged|no picture).*(again|save it)") as caught:
        open_picture(file)
    assert "\n" not in str(caught.value)


def test_a_text_file_renamed_to_png_is_refused_by_name(tmp_path: Path) -> None:
    file = write(tmp_path / "words.png", b"Once upon a time")
    with pytest.raises(DataError, match=r"words\.png is no picture in a known format .*save it as"):
        open_picture(file)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a"])
def test_a_file_that_only_begins_like_a_picture_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.png is"):
        open_picture(write(tmp_path / "a.png", content))


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.png cannot be read .*check the path"):
        open_picture(tmp_path / "none.png")
    with pytest.raises(DataError, match=r"cannot be read .*check the path"):
        open_picture(tmp_path)


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side: int, tmp_path: Path) -> None:
    file = tmp_path / "bomb.png"
    Image.new("1", (side, side)).save(file)
    assert file.stat().st_size < 100_000
    with pytest.raises(DataError, match=r"bomb\.png has .* px, more than the 89,478,485 .*make it smaller"):
        open_picture(file)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_deep_pictures_are_refused_with_a_remedy(dtype: type, tmp_path: Path) -> None:
    file = tmp_path / "depth.tiff"
    Image.fromarray(np.arange(12, dtype=dtype).reshape(3, 4)).save(file)
    with pytest.raises(DataError, match=r"depth\.tiff has more than 8 bits a channel .*scale it to 8 bits"):
        open_picture(file)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3)),
        np.zeros((4, 4, 5), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(3, np.uint8),
    ],
)
def test_arrays_of_another_form_are_refused(array: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"a picture (is|has)"):
        open_picture(array)


def test_why_a_picture_cannot_be_shown_is_said_in_few_words_to_count(tmp_path: Path) -> None:
    deep = encoded(Image.fromarray(np.zeros((2, 3), np.uint16)), "PNG")
    cases = {
        "missing picture": tmp_path / "none.png",
        "no picture": b"words",
        "damaged picture": encoded(Image.new("RGB", (40, 40)), "PNG")[:60],
        "picture too large": encoded(Image.new("1", (12_000, 12_000)), "PNG"),
        "more than 8 bits": deep,
    }
    for reason, source in cases.items():
        with pytest.raises(BadPicture) as caught:
            open_picture(source)
        assert caught.value.reason == reason
