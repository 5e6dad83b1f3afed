"""Camera frames to the model's picture."""

import pytest
import torch

from tailorbird.errors import ConfigError, DataError
from tailorbird.processing.image import ImageSpec, Letterbox


def picture(*shape: int) -> torch.Tensor:
    return torch.randint(256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_frame_of_the_right_size_stays_as_it_is() -> None:
    frame = picture(12, 12)
    assert torch.equal(ImageSpec(size=12).shrink(frame), frame)


def test_the_crop_keeps_the_stated_fractions_of_the_frame() -> None:
    frame = picture(20, 40)
    part = ImageSpec(size=10, crop=(0.25, 0.5, 0.5, 0.25)).shrink(frame)
    assert torch.equal(part, frame[5:15, 20:30])


def test_a_shrunk_edge_is_antialiased_over_two_pixels_to_each_side() -> None:
    frame = torch.zeros(8, 8, 3, dtype=torch.uint8)
    frame[:, 4:] = 200
    small = ImageSpec(size=4).shrink(frame)
    assert small[..., 1].tolist() == [[0, 25, 175, 200]] * 4  # a triangle's eighth lies beyond the edge


@pytest.mark.parametrize(("high", "wide", "size"), [(9, 15, 4), (5, 4, 11), (7, 7, 3)])
def test_a_uniform_picture_stays_uniform(high: int, wide: int, size: int) -> None:
    frame = torch.tensor([0, 127, 255], dtype=torch.uint8).expand(high, wide, 3)
    small = ImageSpec(size=size, crop=(0.2, 0.1, 0.7, 0.8)).shrink(frame)
    assert small.shape == (size, size, 3)
    assert small.unique(dim=0).flatten(0, 1).unique(dim=0).tolist() == [[0, 127, 255]]


def test_a_mirrored_or_strided_frame_is_read_like_its_copy() -> None:
    frame, spec = picture(18, 30), ImageSpec(size=7)
    for view in (frame.flip(1)[:, ::2], frame.transpose(0, 1), frame[::3]):
        assert torch.equal(spec.shrink(view), spec.shrink(view.clone()))


def test_a_frame_alone_equals_the_frame_in_its_batch() -> None:
    frames, spec = picture(5, 2, 18, 30), ImageSpec(size=7, crop=(0.1, 0.2, 0.6, 0.5))
    together = spec.shrink(frames)
    assert together.shape == (5, 2, 7, 7, 3)
    assert torch.equal(spec.shrink(frames[3, 1]), together[3, 1])


def test_scaling_maps_black_to_minus_one_and_white_to_one_channels_first() -> None:
    frames = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    frames[1, 2, 3] = torch.tensor([255, 51, 204])
    scaled = ImageSpec.scale(frames)
    assert scaled.shape == (2, 3, 4, 4)
    assert (scaled[0] == -1).all()
    torch.testing.assert_close(scaled[1, :, 2, 3], torch.tensor([1.0, -0.6, 0.6]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "frame",
    [
        torch.zeros(8, 8, 3),
        torch.zeros(8, 8, dtype=torch.uint8),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.zeros(8, 8, 4, dtype=torch.uint8),
    ],
)
def test_what_is_no_frame_is_refused(frame: torch.Tensor) -> None:
    with pytest.raises(DataError, match=r"\(H, W, 3\) uint8"):
        ImageSpec(size=4).shrink(frame)


def test_a_crop_that_leaves_nothing_of_a_small_frame_is_refused() -> None:
    with pytest.raises(DataError, match=r"10 x 20 px the crop .* leaves nothing"):
        ImageSpec(size=4, crop=(0.0, 0.0, 0.01, 1.0)).shrink(torch.zeros(20, 10, 3, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("size", "crop"),
    [
        (0, (0.0, 0.0, 1.0, 1.0)),
        (4, (-0.1, 0.0, 1.0, 1.0)),
        (4, (0.0, 0.0, 0.0, 1.0)),
        (4, (0.5, 0.0, 0.6, 1.0)),
        (4, (0.0, 0.5, 1.0, 0.6)),
    ],
)
def test_a_crop_outside_the_frame_is_refused(size: int, crop: tuple[float, float, float, float]) -> None:
    with pytest.raises(ConfigError, match="inside the frame"):
        ImageSpec(size=size, crop=crop)


def test_a_letterbox_keeps_the_proportions_and_is_black_on_the_left_and_on_top() -> None:
    wide, tall = (torch.full((*size, 3), 255, dtype=torch.uint8) for size in ((10, 20), (20, 10)))
    scaled = Letterbox(size=8).scale(wide)
    assert scaled.shape == (3, 8, 8)
    assert (scaled[:, :4] == -1).all()
    assert (scaled[:, 4:] == 1).all()
    assert torch.equal(Letterbox(size=8).scale(tall), scaled.transpose(1, 2))


def test_a_letterbox_caches_the_frame_itself_and_checks_it() -> None:
    frame = picture(12, 18)
    assert Letterbox(size=8).shrink(frame) is frame
    with pytest.raises(DataError, match="a frame is"):
        Letterbox(size=8).shrink(frame.float())
    with pytest.raises(DataError, match="900 x 2 px is too narrow"):
        Letterbox(size=8).scale(torch.zeros(2, 900, 3, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="at least 1 px"):
        Letterbox(size=0)
