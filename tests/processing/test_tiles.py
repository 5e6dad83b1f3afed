"""The tensor path against the exact one: never more than two of 255 levels apart."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tailorbird.errors import ConfigError, DataError
from tailorbird.processing import resample
from tailorbird.processing.resample import by_products, has_kernel, lanczos, weights
from tailorbird.processing.tiles import TileSpec

LEVEL = 2 / 255  # one grey level, where pixels run from -1 to 1


def frame(kind: str, height: int, width: int) -> Tensor:
    """noise and checkers are as hard as pictures get: every pass overshoots black and white."""
    rng = np.random.default_rng(height * width)
    pixels = {
        "noise": rng.integers(0, 256, (height, width, 3)),
        "checkers": rng.integers(0, 2, (height, width, 3)) * 255,
        "ramp": np.linspace(0, 255, height * width * 3).reshape(height, width, 3),
        "black": np.zeros((height, width, 3)),
    }[kind]
    return torch.from_numpy(pixels.astype(np.uint8))


def pillow(picture: Tensor, height: int, width: int) -> Tensor:
    resized = Image.fromarray(picture.numpy()).resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(resized)).movedim(-1, 0)


@pytest.fixture(params=["kernel", "products"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of resampling, whatever this machine would choose."""
    if request.param == "products":
        monkeypatch.setattr(resample, "has_kernel", lambda: False)
    elif not has_kernel():
        pytest.skip(f"torch {torch.__version__} has no Lanczos kernel (2.13 has)")
    return str(request.param)


@pytest.mark.parametrize("kind", ["noise", "checkers", "ramp", "black"])
@pytest.mark.parametrize("split", [True, False], ids=["split", "whole"])
@pytest.mark.parametrize("size", [(24, 24), (37, 91), (200, 80), (1, 50), (300, 400)])
def test_the_tensor_path_is_within_two_levels(
    way: str, size: tuple[int, int], split: bool, kind: str
) -> None:
    spec = TileSpec(longest_edge=128, tile=32, split=split)
    picture = frame(kind, *size)
    exact, fast = spec.exact(picture), spec.fast(picture[None])[0]
    assert fast.shape == exact.shape
    worst = float((fast - exact).abs().max()) / LEVEL
    assert worst <= 2.001, f"{worst:.2f} levels"


@pytest.mark.parametrize("kind", ["noise", "checkers"])
def test_camera_frames_at_the_released_sizes_are_within_two_levels(kind: str) -> None:
    frames = torch.stack([frame(kind, 256, 256), frame(kind, 256, 256).flip(0)])
    fast = TileSpec().fast(frames)
    assert fast.shape == (2, 17, 3, 512, 512)
    for one, tiles in zip(frames, fast, strict=True):
        assert float((tiles - TileSpec().exact(one)).abs().max()) <= 2.001 * LEVEL


@pytest.mark.parametrize(
    "sizes", [((40, 30), (97, 64)), ((97, 64), (40, 30)), ((5, 5), (5, 17)), ((9, 9), (3, 9))]
)
@pytest.mark.parametrize("kind", ["noise", "checkers", "ramp"])
def test_resampling_by_products_is_within_one_level_of_pillow(
    sizes: tuple[tuple[int, int], tuple[int, int]], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = sizes
    picture = frame(kind, *old)
    monkeypatch.setattr(resample, "has_kernel", lambda: False)
    ours = lanczos(picture.movedim(-1, 0)[None], new)[0]
    difference = (ours.int() - pillow(picture, *new).int()).abs()
    assert ours.dtype == torch.uint8
    assert int(difference.max()) <= 1
    assert float((difference > 0).float().mean()) < 0.01


def test_a_frame_of_the_wanted_size_is_left_alone() -> None:
    frames = torch.randint(256, (2, 3, 8, 9), dtype=torch.uint8)
    assert lanczos(frames, (8, 9)) is frames
    assert torch.equal(by_products(frames, (8, 9)), frames)


def test_the_kernel_is_there_exactly_if_it_resizes_like_pillow() -> None:
    picture = frame("noise", 37, 29)
    try:
        resized = F.interpolate(picture.movedim(-1, 0)[None], (37, 11), mode="lanczos", antialias=True)
    except (NotImplementedError, RuntimeError, ValueError):
        assert not has_kernel()
    else:
        assert has_kernel()
        assert int((resized[0].int() - pillow(picture, 37, 11).int()).abs().max()) <= 2


def test_products_do_not_depend_on_autocast_or_on_the_precision_of_other_products() -> None:
    frames = frame("noise", 60, 40).movedim(-1, 0)[None]
    expected = by_products(frames, (33, 71))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(by_products(frames, (33, 71)), expected)
    finally:
        torch.set_float32_matmul_precision(before)


def test_weights_are_made_once_for_a_device() -> None:
    first = weights(7, 5, torch.device("cpu"))
    assert weights(7, 5, torch.device("cpu")) is first
    assert weights(7, 5, torch.device("meta")).is_meta
    torch.testing.assert_close(first.sum(1), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["noise", "checkers"])
@pytest.mark.parametrize("tf32", [False, True])
def test_tiles_cut_on_a_gpu_are_within_two_levels(
    kind: str, tf32: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", tf32)
    frames = torch.stack([frame(kind, 256, 256), frame(kind, 256, 256).flip(0)])
    with torch.autocast("cuda", torch.bfloat16, enabled=tf32):
        tiles = TileSpec().fast(frames.cuda())
    assert tiles.device.type == "cuda"
    for one, ours in zip(frames, tiles.cpu(), strict=True):
        assert float((ours - TileSpec().exact(one)).abs().max()) <= 2.001 * LEVEL


def test_channels_may_come_first_or_last() -> None:
    frames = torch.randint(256, (2, 20, 30, 3), dtype=torch.uint8)
    spec = TileSpec(longest_edge=64, tile=32)
    assert torch.equal(spec.fast(frames), spec.fast(frames.movedim(-1, 1).contiguous()))


def test_a_batch_gives_each_frame_the_pixels_that_it_has_alone() -> None:
    frames = torch.randint(256, (3, 20, 30, 3), dtype=torch.uint8)
    spec = TileSpec(longest_edge=64, tile=32)
    together = spec.fast(frames)
    for i in range(3):
        assert torch.equal(together[i : i + 1], spec.fast(frames[i : i + 1]))


def test_pixels_come_in_the_type_that_is_asked_for() -> None:
    frames = torch.randint(256, (1, 20, 30, 3), dtype=torch.uint8)
    spec = TileSpec(longest_edge=64, tile=32)
    half = spec.fast(frames, torch.bfloat16)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), spec.fast(frames), rtol=0, atol=2**-7)


def test_pixels_are_written_where_the_caller_says() -> None:
    frames = torch.randint(256, (2, 20, 30, 3), dtype=torch.uint8)
    spec = TileSpec(longest_edge=64, tile=32)
    expected = spec.fast(frames)
    mine = torch.full_like(expected, torch.nan)
    assert spec.fast(frames, out=mine) is mine
    assert torch.equal(mine, expected)
    for other in (mine[:1], mine.byte(), mine.to("meta")):
        with pytest.raises(DataError, match="out must be"):
            spec.fast(frames, out=other)


def test_frames_are_cut_in_inference_mode_too() -> None:
    spec = TileSpec(longest_edge=128, tile=32, split=True)
    frames = torch.stack([frame("noise", 37, 91), frame("ramp", 37, 91)])
    with torch.inference_mode():
        tiles = spec.fast(frames)
    assert tiles.is_inference()
    assert torch.equal(tiles, spec.fast(frames))


def test_the_whole_picture_comes_last_and_the_cuts_row_by_row() -> None:
    spec = TileSpec(longest_edge=8, tile=4)
    picture = torch.zeros(8, 8, 3, dtype=torch.uint8)
    picture[:4, 4:] = 255  # above on the right
    for tiles in (spec.exact(picture), spec.fast(picture[None])[0]):
        assert [round(float(tile.mean())) for tile in tiles] == [-1, 1, -1, -1, 0]  # the whole: -0.5 or so


def test_skipping_the_upscaling_is_asked_for_by_name_and_gives_fewer_tiles() -> None:
    picture = frame("noise", 256, 256)
    assert len(TileSpec().exact(picture)) == 17
    spec = TileSpec(upscale=False)
    assert (spec.layout(256, 256).resized, spec.layout(256, 256).num_tiles) == ((256, 256), 1)
    assert spec.layout(3000, 1000) == TileSpec().layout(3000, 1000), "a large picture is shrunk all the same"
    expected = Image.fromarray(picture.numpy()).resize((512, 512), Image.Resampling.LANCZOS)
    whole = TileSpec(upscale=False, split=False).exact(picture)
    levels = torch.from_numpy(np.array(expected)).movedim(-1, 0)
    torch.testing.assert_close(whole[0], levels / 127.5 - 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(2, 8, 8, 3),
        torch.zeros(8, 8, 3, dtype=torch.uint8),
        torch.zeros(2, 8, 8, 4, dtype=torch.uint8),
    ],
)
def test_frames_of_another_form_are_refused(frames: Tensor) -> None:
    with pytest.raises(DataError, match=r"frames are \(B, H, W, 3\) or \(B, 3, H, W\) uint8, got"):
        TileSpec().fast(frames)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="sizes must be at least 1 px"):
        TileSpec(tile=0)
