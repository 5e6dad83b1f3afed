"""What a VLM learns from packed rows: the right tokens, each sample as if alone, with noise if asked."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_vlm import LENGTH, PER, SMALL, new_vlm, pack, sample
from torch import Tensor

from tailorbird.train.step import apart, foretold, neftune, token_losses
from tailorbird.train.vlm import portion_of
from tailorbird.types import Rows

IMAGE = SMALL.image_token_id


def gradients(rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
    model = new_vlm()
    losses = token_losses(model, rows)
    losses.sum().backward()
    return losses.detach(), {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


def test_samples_in_one_row_have_the_losses_and_gradients_that_they_have_alone() -> None:
    together, packed = gradients(pack([[3, 4], [7]]))
    parts = [gradients(pack([[one]])) for one in (3, 4, 7)]
    torch.testing.assert_close(together, torch.cat([losses for losses, _ in parts]), rtol=1e-5, atol=1e-5)
    for name, gradient in packed.items():
        alone = torch.stack([found[name] for _, found in parts]).sum(0)
        torch.testing.assert_close(gradient, alone, rtol=1e-5, atol=1e-5, msg=name)


def test_without_their_mask_samples_of_a_row_would_see_each_other() -> None:
    rows = pack([[3, 4]])
    model = new_vlm()
    hidden = model.decoder(model.embed(rows.ids, rows.pixels), rows.positions)
    leaked = F.cross_entropy(
        model.logits(hidden[:, :-1])[foretold(rows, IMAGE)[:, :-1]],
        rows.ids[:, 1:][foretold(rows, IMAGE)[:, :-1]],
        reduction="none",
    )
    assert (leaked - token_losses(model, rows)).abs().max() > 0.01


def test_a_token_is_foretold_from_the_one_before_in_its_sample_and_never_a_place_of_a_picture() -> None:
    rows = pack([[3, 4]])
    num = len(sample(3)["ids"])
    assert rows.learned[0, 1 : 1 + PER].all()  # though the source says so
    places = foretold(rows, IMAGE)[0].nonzero()[:, 0]
    assert places.tolist() == [*range(num - 5, num - 1), *range(2 * num - 5, 2 * num - 1)]
    first = replace(rows, learned=torch.ones_like(rows.learned))
    found = foretold(first, IMAGE)[0]
    assert not found[num - 1]  # the first token of the second sample follows nothing
    assert not found[2 * num - 1 :].any()  # nor does padding
    assert not (rows.ids[0, 1:][found[:-1]] == IMAGE).any()


def test_one_sample_a_row_needs_no_mask_and_several_see_themselves_alone() -> None:
    assert apart(pack([[3], [4]]).segment) is None
    mask = apart(torch.tensor([[0, 0, 1, -1]]))
    assert mask is not None
    assert mask[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_rows_of_words_alone_are_learned_without_the_image_tower() -> None:
    rows = pack([[3, 4]], pictures=0)
    assert rows.pixels is None
    _, found = gradients(rows)
    assert not any(name.startswith(("vision.", "connector.")) for name in found)
    assert "decoder.embed.weight" in found


def test_logits_are_made_only_where_something_is_learned() -> None:
    rows, model, made = pack([[3, 4], [7]]), new_vlm(), []
    assert model.head is not None
    model.head.register_forward_hook(lambda _, __, out: made.append(out.shape))
    token_losses(model, rows)
    assert made == [(12, SMALL.decoder.vocab)]


def test_portions_count_what_is_learned_by_source() -> None:
    portion = portion_of(pack([[3, 4], [7]]), IMAGE, 0)
    assert portion.weights == {"even": 4.0, "odd": 8.0}
    assert portion.which.tolist() == [1] * 4 + [0] * 4 + [1] * 4
    assert (portion.samples, portion.tokens, portion.places) == (3, 3 * (8 + PER), 2 * LENGTH)
    assert portion.names == ["sample 3", "sample 4", "sample 7"]


@pytest.mark.parametrize("alpha", [5.0, 10.0])
def test_noise_has_its_scale_by_the_length_of_each_sample_and_spares_pictures(
    alpha: float,
) -> None:
    rows = pack([[3], [4, 5]], words=20, length=70)
    width = 400
    noise = neftune(rows, width, alpha, IMAGE, seed=1)
    words = (rows.segment >= 0) & (rows.ids != IMAGE)
    assert not noise[~words].any()
    most = alpha / ((20 + PER) * width) ** 0.5
    assert noise.abs().max() <= most
    assert noise[words].abs().mean().item() == pytest.approx(most / 2, rel=0.02)  # uniform
    assert noise[words].mean().abs() < 0.02 * most


def test_noise_is_a_function_of_the_seed_and_of_the_row_and_not_of_its_place() -> None:
    one, other = pack([[3], [4]]), pack([[4], [3]])
    a, b = (neftune(rows, 30, 5.0, IMAGE, seed=1) for rows in (one, other))
    assert torch.equal(a[0], b[1])
    assert not torch.equal(a[0], a[1])
    assert not torch.equal(a, neftune(one, 30, 5.0, IMAGE, seed=2))
