"""Random changes of training pictures."""

import pytest
import torch
from torch import Tensor

from tailorbird.data.augment import change
from tailorbird.data.config import Augment
from tailorbird.errors import ConfigError


def noise(num: int = 4, cameras: int = 2, size: int = 10) -> Tensor:
    shape = (num, cameras, size, size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shifted(picture: Tensor, down: int, right: int) -> Tensor:
    """The picture (S, S, 3) seen from a camera moved so far, the rim repeated."""
    size = len(picture)
    rows = [min(max(i + down, 0), size - 1) for i in range(size)]
    columns = [min(max(i + right, 0), size - 1) for i in range(size)]
    return picture[rows][:, columns]


def test_no_change_is_asked_for_and_none_is_made() -> None:
    frames = noise()
    assert torch.equal(change(frames, Augment(), draw(0)), frames)


@pytest.mark.parametrize(
    "cfg", [Augment(shift_px=2), Augment(brightness=0.3), Augment(contrast=0.3)], ids=str
)
def test_the_same_generator_makes_the_same_change_and_another_another(cfg: Augment) -> None:
    frames = noise()
    first, again, other = (change(frames, cfg, draw(seed)) for seed in (1, 1, 2))
    assert first.shape == frames.shape
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, frames)
    assert torch.equal(frames, noise()), "the frames given are left as they are"


def test_a_shift_moves_each_sample_its_own_way_and_all_its_cameras_alike() -> None:
    frames = noise(num=9)
    moved = change(frames, Augment(shift_px=2), draw(3))
    ways = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]
    found = []
    for before, after in zip(frames, moved, strict=True):
        fits = [w for w in ways if all(torch.equal(shifted(before[n], *w), after[n]) for n in range(2))]
        assert len(fits) == 1
        found += fits
    assert len(set(found)) > 3


def test_brightness_scales_every_colour_alike() -> None:
    grey = torch.tensor([0, 50, 100, 150], dtype=torch.uint8).reshape(1, 1, 2, 2, 1).repeat(1, 1, 1, 1, 3)
    changed = change(grey, Augment(brightness=0.5), draw(0)).flatten(0, -2)[:, 0].tolist()
    factor = changed[2] / 100
    assert 0.5 <= factor <= 1.5
    assert factor != 1
    assert changed == pytest.approx([0, 50 * factor, 100 * factor, 150 * factor], abs=1)


def test_contrast_spreads_colours_about_the_middle() -> None:
    pair = torch.tensor([64, 191], dtype=torch.uint8).reshape(1, 1, 1, 2, 1).repeat(1, 1, 2, 1, 3)
    dark, bright = change(pair, Augment(contrast=0.5), draw(1))[0, 0, 0, :, 0].tolist()
    assert dark + bright == pytest.approx(255, abs=1)
    assert 0.5 <= (bright - dark) / (191 - 64) <= 1.5
    assert (dark, bright) != (64, 191)


def test_colours_never_wrap_around() -> None:
    extremes = torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 1, 1, 2, 1).repeat(32, 1, 2, 1, 3)
    changed = change(extremes, Augment(brightness=0.9, contrast=0.9), draw(0))
    assert (changed[..., 0, :] <= changed[..., 1, :]).all()


@pytest.mark.parametrize("wrong", [{"shift_px": -1}, {"brightness": 1.0}, {"contrast": -0.1}])
def test_an_impossible_augmentation_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="not an augmentation"):
        Augment(**wrong)
