"""SmolVLM against transformers, with the same random weights in fp32: rtol = atol = 1e-5 everywhere."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import VISION, build_reference, config
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import SmolVLMForConditionalGeneration

from tailorbird.checkpoint.smolvlm import vlm_rules
from tailorbird.checkpoint.table import convert, revert
from tailorbird.errors import CheckpointError
from tailorbird.model.build import build_model
from tailorbird.model.cache import DenseCache
from tailorbird.model.config import VLMConfig
from tailorbird.model.vlm import VLM

pytestmark = pytest.mark.parity

TOLERANCE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-5}


@dataclass(frozen=True)
class Pair:
    """The same weights on both sides, and a batch: two images in the first row, one in the second."""

    cfg: VLMConfig
    reference: SmolVLMForConditionalGeneration
    ours: VLM
    ids: Tensor  # (2, T)
    pixels: Tensor  # (3, 3, 37, 37)

    @property
    def reference_inputs(self) -> dict[str, Any]:
        """The reference wants as many images in every row, and takes one of zeros for padding."""
        padded = torch.stack([self.pixels[:2], torch.stack([self.pixels[2], torch.zeros(3, 37, 37)])])
        return {"input_ids": self.ids, "pixel_values": padded, "use_cache": False}


@pytest.fixture(
    scope="module",
    params=[(False, 2), (True, 2), (False, 3)],
    ids=["own head", "tied head", "blocks of 3 x 3 patches"],
)
def pair(request: pytest.FixtureRequest) -> Pair:
    cfg = config(tied=request.param[0], shuffle=request.param[1])
    reference = build_reference(cfg, seed=0)
    ours = build_model(cfg, "meta")
    ours.load_state_dict(convert(reference.state_dict(), vlm_rules(cfg)), assign=True)
    assert isinstance(ours, VLM)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(97, (2, 2 * cfg.tokens_per_image + 7), generator=generator)
    image = slice(0, cfg.tokens_per_image)
    ids[0, 1:][image] = ids[0, -4 - cfg.tokens_per_image :][image] = ids[1, 3:][image] = cfg.image_token_id
    pixels = torch.rand(3, 3, 37, 37, generator=generator) * 2 - 1
    return Pair(cfg, reference, ours.eval(), ids, pixels)


@torch.inference_mode()
def test_the_image_tower_is_that_of_the_reference(pair: Pair) -> None:
    expected = pair.reference.model.vision_model(pair.pixels).last_hidden_state
    torch.testing.assert_close(pair.ours.vision(pair.pixels), expected, **TOLERANCE)


@torch.inference_mode()
def test_the_connector_is_that_of_the_reference(pair: Pair) -> None:
    patches = torch.randn(2, VISION.grid**2, VISION.width, generator=torch.Generator().manual_seed(2))
    expected = pair.reference.model.connector(patches)
    assert expected.shape[1] == pair.cfg.tokens_per_image
    torch.testing.assert_close(pair.ours.connector(patches), expected, **TOLERANCE)


@torch.inference_mode()
def test_images_enter_the_prompt_where_the_reference_puts_them(pair: Pair) -> None:
    expected = pair.reference(**pair.reference_inputs, output_hidden_states=True).hidden_states[0]
    torch.testing.assert_close(pair.ours.embed(pair.ids, pair.pixels), expected, **TOLERANCE)


@torch.inference_mode()
def test_every_layer_and_the_logits_equal_the_reference(pair: Pair) -> None:
    expected = pair.reference(**pair.reference_inputs, output_hidden_states=True)
    layers: list[Tensor] = []
    parts = [*pair.ours.decoder.blocks[:-1], pair.ours.decoder.norm]  # the reference's last one is normed
    hooks = [part.register_forward_hook(lambda _, args, out: layers.append(out)) for part in parts]
    logits = pair.ours(pair.ids, pair.pixels)
    for hook in hooks:
        hook.remove()
    for ours, theirs in zip(layers, expected.hidden_states[1:], strict=True):
        torch.testing.assert_close(ours, theirs, **TOLERANCE)
    torch.testing.assert_close(logits, expected.logits, **TOLERANCE)


@torch.inference_mode()
def test_words_alone_give_the_logits_of_the_reference(pair: Pair) -> None:
    ids = torch.arange(22).view(2, 11) * 4
    torch.testing.assert_close(pair.ours(ids), pair.reference(input_ids=ids).logits, **TOLERANCE)


@torch.inference_mode()
def test_decoding_with_a_cache_equals_the_reference_with_its_own(pair: Pair) -> None:
    start = pair.reference(**pair.reference_inputs | {"use_cache": True})
    cache = DenseCache()
    logits = pair.ours(pair.ids, pair.pixels, cache=cache)
    torch.testing.assert_close(logits, start.logits, **TOLERANCE)
    more = torch.arange(12).view(2, 6)
    for ids in more.split([1, 3, 2], dim=1):
        expected = pair.reference(input_ids=ids, past_key_values=start.past_key_values, use_cache=True)
        torch.testing.assert_close(pair.ours(ids, cache=cache), expected.logits, **TOLERANCE)
    assert cache.length == pair.ids.shape[1] + more.shape[1]


@torch.inference_mode()
def test_decoding_with_a_cache_equals_one_full_pass_of_the_reference(pair: Pair) -> None:
    inputs, cut = pair.reference_inputs, pair.ids.shape[1] - 3
    expected = pair.reference(**inputs).logits
    cache = DenseCache()
    parts = [pair.ours(pair.ids[:, :cut], pair.pixels, cache=cache)]
    parts += [pair.ours(ids, cache=cache) for ids in pair.ids[:, cut:].split([1, 2], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, **TOLERANCE)


@torch.inference_mode()
def test_our_weights_are_a_file_that_the_reference_loads_whole(pair: Pair, tmp_path: Path) -> None:
    pair.reference.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    reverted = revert(pair.ours.state_dict(), vlm_rules(pair.cfg))
    assert reverted.keys() == saved.keys()
    assert all(torch.equal(reverted[key], value) for key, value in saved.items())

    other = build_reference(pair.cfg, seed=3).state_dict()
    changed = build_model(pair.cfg, "meta")
    changed.load_state_dict(convert(other, vlm_rules(pair.cfg)), assign=True)
    save_file(
        revert(changed.state_dict(), vlm_rules(pair.cfg)), tmp_path / "model.safetensors", {"format": "pt"}
    )
    loaded, report = SmolVLMForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert loaded.state_dict().keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in loaded.state_dict().items())
    torch.testing.assert_close(
        changed(pair.ids, pair.pixels), loaded(**pair.reference_inputs).logits, **TOLERANCE
    )


@torch.inference_mode()
def test_a_tied_configuration_refuses_a_checkpoint_with_a_head_of_its_own() -> None:
    theirs = build_reference(config(tied=False, shuffle=2), seed=0).state_dict()
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from .*embed_tokens\.weight"):
        convert(theirs, vlm_rules(config(tied=True, shuffle=2)))


def test_loss_and_gradients_are_those_of_the_reference(pair: Pair) -> None:
    """The learned half of the prompt; gradients of all weights, 1e-4 of the largest of each tensor."""
    labels = pair.ids.clone()
    labels[:, : labels.shape[1] // 2] = -100
    labels[labels == pair.cfg.image_token_id] = -100
    pair.reference.zero_grad()
    expected = pair.reference(**pair.reference_inputs, labels=labels).loss
    expected.backward()
    theirs = {name: value.grad for name, value in pair.reference.named_parameters() if value.grad is not None}
    if pair.cfg.decoder.tied:
        theirs.pop("lm_head.weight", None)

    ours = pair.ours.requires_grad_(True)
    loss = F.cross_entropy(
        ours(pair.ids, pair.pixels)[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    loss.backward()
    torch.testing.assert_close(loss, expected, **TOLERANCE)
    found = {name: value.grad for name, value in ours.named_parameters()}
    for name, gradient in convert(theirs, vlm_rules(pair.cfg)).items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-4 * float(gradient.abs().max()))
    ours.zero_grad()
