"""The vision-language model: where the pictures go, and which head speaks."""

from dataclasses import replace

import pytest
import torch

from tailorbird.errors import DataError
from tailorbird.model.config import VLMConfig
from tailorbird.model.vlm import VLM

IMAGE = 1


@pytest.fixture
def vlm(vlm_config: VLMConfig) -> VLM:
    return VLM(vlm_config)


def test_images_take_the_places_of_their_tokens_in_order(vlm: VLM) -> None:
    pixels = torch.rand(3, 3, 24, 24)
    ids = torch.full((2, 11), 7)
    ids[0, 1:5] = ids[0, 6:10] = IMAGE  # two pictures
    ids[1, 3:7] = IMAGE  # one
    x, tokens = vlm.embed(ids, pixels), vlm.encode_images(pixels)
    assert torch.equal(x[0, 1:5], tokens[0])
    assert torch.equal(x[0, 6:10], tokens[1])
    assert torch.equal(x[1, 3:7], tokens[2])
    words = vlm.decoder.embed.weight[7]
    assert torch.equal(x[ids != IMAGE], words.expand(22 - 12, -1))


def test_a_prompt_without_pictures_is_its_words(vlm: VLM) -> None:
    ids = torch.randint(2, 53, (2, 5))
    assert torch.equal(vlm.embed(ids, None), vlm.decoder.embed(ids))


def test_images_can_be_placed_when_they_are_encoded_already(vlm: VLM) -> None:
    pixels, ids = torch.rand(2, 3, 24, 24), torch.full((1, 9), 7)
    ids[0, :8] = IMAGE
    features = torch.cat([vlm.encode_images(tile) for tile in pixels.split(1)])
    torch.testing.assert_close(vlm.place(ids, features), vlm.embed(ids, pixels), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("places", "images"), [(8, 1), (4, 2), (3, 1), (4, 0), (0, 1)])
def test_as_many_places_as_image_tokens_or_an_error(vlm: VLM, places: int, images: int) -> None:
    ids = torch.full((2, 11), 7)
    ids[1, :places] = IMAGE
    pixels = torch.rand(images, 3, 24, 24) if images else None
    with pytest.raises(DataError, match=f"hold {places} <image> places, the images {4 * images} tokens"):
        vlm.embed(ids, pixels)


def test_a_prompt_is_placed_where_no_number_can_be_read(vlm_config: VLMConfig) -> None:
    vlm = VLM(vlm_config).to("meta")
    ids = torch.zeros(2, 11, dtype=torch.long, device="meta")
    assert vlm(ids, torch.zeros(3, 3, 24, 24, device="meta")).shape == (2, 11, 53)


def test_a_tied_head_is_the_embedding_table(vlm: VLM) -> None:
    hidden = torch.randn(2, 5, 22)
    assert vlm.head is None
    torch.testing.assert_close(vlm.logits(hidden), hidden @ vlm.decoder.embed.weight.T, rtol=1e-5, atol=1e-5)


def test_an_untied_head_is_its_own(vlm_config: VLMConfig) -> None:
    vlm = VLM(replace(vlm_config, decoder=replace(vlm_config.decoder, tied=False)))
    hidden = torch.randn(2, 5, 22)
    assert vlm.head is not None
    assert torch.equal(vlm.logits(hidden), vlm.head(hidden))
    assert not torch.allclose(vlm.logits(hidden), hidden @ vlm.decoder.embed.weight.T, atol=1e-2)


def test_a_picture_changes_only_what_comes_after_it(vlm: VLM) -> None:
    ids = torch.randint(2, 53, (1, 9))
    ids[0, 3:7] = IMAGE
    one, other = vlm(ids, torch.rand(1, 3, 24, 24)), vlm(ids, -torch.rand(1, 3, 24, 24))
    assert one.shape == (1, 9, 53)
    torch.testing.assert_close(one[:, :3], other[:, :3], rtol=0, atol=1e-6)
    assert ((one - other)[:, 3:].abs().amax(-1) > 1e-4).all()


def test_a_padded_row_answers_like_the_row_alone(vlm: VLM) -> None:
    ids = torch.randint(2, 53, (1, 6))
    padded = torch.cat([ids, torch.zeros(1, 3, dtype=torch.long)], dim=1)
    torch.testing.assert_close(vlm(padded)[:, :6], vlm(ids), rtol=1e-5, atol=1e-5)


def test_the_whole_model_runs_in_bf16(vlm: VLM) -> None:
    ids = torch.randint(2, 53, (1, 9))
    ids[0, 3:7] = IMAGE
    pixels = torch.rand(1, 3, 24, 24)
    exact = vlm(ids, pixels)
    rounded = vlm.bfloat16()(ids, pixels.bfloat16())
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0, atol=0.05 * exact.abs().max().item())
