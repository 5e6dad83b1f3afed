"""Open a picture, whatever it comes as, to RGB; refuse by name what is none."""

import functools
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from tailorbird.errors import DataError

Picture = str | Path | bytes | Image.Image | NDArray[np.uint8] | Tensor
MAX_PIXELS = 89_478_485  # where Pillow begins to warn of decompression bombs: 256 MB of RGB
DEEP_MODES = ("I", "F")  # and their variants, such as "I;16"
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")  # others of Pillow run programs


class BadPicture(DataError):  # noqa: N818 (reads as what happened)
    """What cannot be shown. reason: one of a few words, for counting."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def open_picture(source: Picture) -> Tensor:
    """Any picture as (H, W, 3) uint8.

    Two habits of the reference are kept: a file is turned as its EXIF tag says and loses its transparency,
    while a PIL picture is taken as it lies and laid on white where it is transparent. An array or tensor is
    uint8, (H, W, 3), (3, H, W), or grey (H, W); a tensor stays on its device.

    Raises:
        BadPicture: the file is missing, damaged, no picture, too large, or has more than 8 bits a channel.
    """
    if isinstance(source, Tensor):
        return _as_rgb(source)
    if isinstance(source, np.ndarray):
        return _as_rgb(torch.from_numpy(np.array(source)))
    if isinstance(source, Image.Image):
        with _damage_named("the picture"):  # it may be a file that nobody has decoded yet
            return _as_tensor(_on_white(_checked(source, "the picture")))
    return _as_tensor(_decode(source))


def _decode(source: str | Path | bytes) -> Image.Image:
    name = "the picture" if isinstance(source, bytes) else str(source)
    with _damage_named(name), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # its limit is ours, as an error
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=_formats()) as picture:
            return ImageOps.exif_transpose(_checked(picture, name)).convert("RGB")


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow can open: it fails at names that it does not know."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextmanager
def _damage_named(name: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise BadPicture("picture too large", _too_large(name, "more")) from None
    except UnidentifiedImageError:
        raise BadPicture(
            "no picture",
            f"{name} is no picture in a known format ({', '.join(_formats())}), whatever its name says: save "
            "it as one of these",
        ) from None
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise BadPicture(
            "missing picture", f"{name} cannot be read ({error.strerror}): check the path of the picture"
        ) from None
    except Exception as error:  # decoders of damaged files raise whatever they like
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise BadPicture(
            "damaged picture", f"{name} is damaged ({reason[0]}): fetch or save the picture again"
        ) from None


def _checked(picture: Image.Image, name: str) -> Image.Image:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise BadPicture("picture too large", _too_large(name, f"{width} x {height}"))
    if width * height == 0:
        raise BadPicture("empty picture", f"{name} is {width} x {height} px: there is nothing to see")
    if picture.mode.startswith(DEEP_MODES):
        raise BadPicture(
            "more than 8 bits",
            f"{name} has more than 8 bits a channel (mode {picture.mode}), and which of them are seen is not "
            "for us to guess: scale it to 8 bits first",
        )
    return picture


def _too_large(name: str, size: str) -> str:
    return f"{name} has {size} px, more than the {MAX_PIXELS:,} that are decoded: make it smaller first"


def _on_white(picture: Image.Image) -> Image.Image:
    if "A" not in picture.getbands() and picture.info.get("transparency") is None:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer).convert("RGB")


def _as_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture))  # (H, W, 3)


def _as_rgb(frame: Tensor) -> Tensor:
    if frame.dtype != torch.uint8 or frame.ndim not in (2, 3) or frame.numel() == 0:
        raise BadPicture(
            "no picture",
            f"a picture is (H, W, 3), (3, H, W) or (H, W), uint8 in 0 to 255, got {tuple(frame.shape)} "
            f"{frame.dtype}",
        )
    if frame.ndim == 2:
        return frame[..., None].expand(-1, -1, 3)  # (H, W, 3)
    if frame.shape[-1] == 3:
        return frame
    if frame.shape[0] == 3:
        return frame.movedim(0, -1)  # (H, W, 3)
    raise BadPicture("no picture", f"a picture has 3 channels, first or last, got {tuple(frame.shape)}")
