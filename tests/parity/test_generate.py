"""Generation against transformers' own, with the same random weights in fp32: the same tokens."""

from typing import Any

import pytest
import torch
from reference import build_reference, config
from torch import Tensor
from transformers import SmolVLMForConditionalGeneration

from tailorbird.checkpoint.smolvlm import vlm_rules
from tailorbird.checkpoint.table import convert
from tailorbird.infer.config import Sampling
from tailorbird.infer.generate import generate
from tailorbird.model.build import build_model
from tailorbird.model.vlm import VLM
from tailorbird.types import Prompts

pytestmark = pytest.mark.parity

CFG = config(tied=False, shuffle=3)  # 4 tokens per image, 64 positions
PAD, NUM = 2, 24
Theirs = SmolVLMForConditionalGeneration


@pytest.fixture(scope="module", params=[0, 1])
def pair(request: pytest.FixtureRequest) -> tuple[Theirs, VLM]:
    theirs = build_reference(CFG, seed=request.param)
    theirs.generation_config.eos_token_id = None
    theirs.generation_config.pad_token_id = PAD
    ours = build_model(CFG, "meta")
    ours.load_state_dict(convert(theirs.state_dict(), vlm_rules(CFG)), assign=True)
    assert isinstance(ours, VLM)
    return theirs, ours.eval()


def prompts() -> Prompts:
    """Two images, one, and none, among words; padded on the left."""
    generator = torch.Generator().manual_seed(5)
    valid = torch.arange(18) >= torch.tensor([0, 5, 11])[:, None]
    ids = torch.randint(3, 97, (3, 18), generator=generator).where(valid, torch.tensor(PAD))
    ids[0, 1:5] = ids[0, 6:10] = ids[1, 8:12] = CFG.image_token_id
    pixels = torch.rand(3, 3, 37, 37, generator=generator) * 2 - 1
    return Prompts(ids=ids, valid=valid, learned=torch.zeros_like(valid), pixels=pixels, tiles=(2, 1, 0))


def row(num: int) -> Prompts:
    """One of them alone, without its padding."""
    whole, start = prompts(), sum(prompts().tiles[:num])
    assert whole.pixels is not None
    valid = whole.valid[num]
    return Prompts(
        ids=whole.ids[num, valid][None],
        valid=valid[valid][None],
        learned=torch.zeros_like(valid[valid])[None],
        pixels=whole.pixels[start : start + whole.tiles[num]] if whole.tiles[num] else None,
        tiles=(whole.tiles[num],),
    )


def reference_tokens(theirs: Theirs, given: Prompts, **settings: Any) -> list[list[int]]:
    """The new tokens. The reference wants as many images in every row, and takes zeros for padding."""
    inputs: dict[str, Tensor] = {"input_ids": given.ids, "attention_mask": given.valid.long()}
    if given.pixels is not None:
        padded, start = torch.zeros(len(given.ids), max(given.tiles), *given.pixels.shape[1:]), 0
        for i, tiles in enumerate(given.tiles):
            padded[i, :tiles] = given.pixels[start : start + tiles]
            start += tiles
        inputs["pixel_values"] = padded
    out = theirs.generate(**inputs, **{"max_new_tokens": NUM, "do_sample": False} | settings)
    return out[:, given.ids.shape[1] :].tolist()


def our_tokens(
    ours: VLM, given: Prompts, end_ids: frozenset[int] = frozenset(), **settings: Any
) -> list[list[int]]:
    sampling = Sampling(max_tokens=NUM, **settings)
    return [list(one.ids) for one in generate(ours, given, sampling, end_ids=end_ids, decode=str)]


@pytest.mark.parametrize("num", range(3))
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_the_likeliest_tokens_are_those_of_the_reference(
    pair: tuple[Theirs, VLM], num: int, penalty: float
) -> None:
    expected = reference_tokens(pair[0], row(num), repetition_penalty=penalty)
    assert our_tokens(pair[1], row(num), repetition_penalty=penalty) == expected
    assert len(set(expected[0])) > 2


def test_a_batch_padded_on_the_left_gives_the_tokens_of_the_reference(pair: tuple[Theirs, VLM]) -> None:
    assert our_tokens(pair[1], prompts()) == reference_tokens(pair[0], prompts())


def test_an_end_token_ends_a_row_as_in_the_reference(pair: tuple[Theirs, VLM]) -> None:
    free = reference_tokens(pair[0], prompts())
    end = free[0][4]
    expected = reference_tokens(pair[0], prompts(), eos_token_id=end)
    said = our_tokens(pair[1], prompts(), frozenset({end}))
    assert said[0][-1] == end
    for one, whole in zip(said, expected, strict=True):
        assert one + [PAD] * (len(whole) - len(one)) == whole


@pytest.mark.parametrize("num", range(3))
@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.8},
        {"temperature": 1.3, "top_k": 7},
        {"temperature": 0.9, "top_p": 0.7},
        {"temperature": 1.1, "top_k": 30, "top_p": 0.9, "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_draws_with_the_same_seed_are_those_of_the_reference(
    pair: tuple[Theirs, VLM], num: int, settings: dict[str, Any]
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(17)
        expected = reference_tokens(pair[0], row(num), **{"do_sample": True, "top_k": 0} | settings)
    assert our_tokens(pair[1], row(num), seed=17, **settings) == expected
    assert expected != reference_tokens(pair[0], row(num))
