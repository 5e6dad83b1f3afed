"""The whole policy network: who sees whom, batches, noise and gradients."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tailorbird.model.build import build_model
from tailorbird.model.cache import DenseCache
from tailorbird.model.config import Solver, VLAConfig
from tailorbird.model.flow import flow_loss, integrate
from tailorbird.model.init import initialise
from tailorbird.model.sizes import SMOLVLA_BASE
from tailorbird.model.vla import VLA, Prefix, embed_time
from tailorbird.types import Inputs

STATE = 14  # after two cameras of four tokens and six words
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}  # fp32, other matrix shapes add in another order


def rows(seen: Inputs, *index: int) -> Inputs:
    chosen = torch.tensor(index)
    return Inputs(**{name: getattr(seen, name)[chosen] for name in ("pixels", "ids", "ids_valid", "state")})


def moved(before: Prefix, after: Prefix, layer: int) -> Tensor:
    """Which places of the prefix have other keys or values, (B, S)."""
    pairs = zip(before.layers[layer], after.layers[layer], strict=True)
    return torch.stack([(a - b).abs().amax((1, 3)) for a, b in pairs]).amax(0) > 1e-5


def assert_same_prefix(one: Prefix, other: Prefix) -> None:
    assert torch.equal(one.valid, other.valid)
    for a, b in zip(one.layers, other.layers, strict=True):
        torch.testing.assert_close(a.k, b.k, **TOLERANCE)
        torch.testing.assert_close(a.v, b.v, **TOLERANCE)


def test_the_prefix_is_images_and_words_scaled_by_the_root_of_the_width_and_then_the_state(
    open_vla: VLA, seen: Inputs
) -> None:
    one = rows(seen, 0)  # all its words are valid
    images = open_vla.vlm.encode_images(one.pixels[0]).flatten(0, 1)  # (8, C)
    words, state = open_vla.vlm.decoder.embed(one.ids[0]), open_vla.state_in(one.state)
    x = torch.cat([math.sqrt(22) * images, math.sqrt(22) * words, state])[None]
    mask = torch.ones(15, 15, dtype=torch.bool)
    mask[:STATE, STATE] = False
    cache = DenseCache()
    open_vla.vlm.decoder(x, torch.arange(15)[None], mask[None, None], cache)
    assert_same_prefix(open_vla.encode(one), Prefix(cache.layers, torch.ones(1, 15, dtype=torch.bool)))


def with_fields(vla: VLA, **fields: object) -> VLA:
    """The same weights in another configuration."""
    other = VLA(replace(vla.cfg, **fields))  # type: ignore[arg-type]
    other.load_state_dict(vla.state_dict())
    return other


def test_start_and_end_tokens_stand_around_each_image_as_they_are(vla: VLA, seen: Inputs) -> None:
    around = with_fields(vla, image_start=(5, 6), image_end=(5,))
    words = vla.vlm.decoder.embed.weight
    plain, found = vla.embed_images(seen.pixels), around.embed_images(seen.pixels)
    assert found.shape == (3, 2 * (2 + 4 + 1), 22)
    one, other = found.split(7, dim=1)
    for camera, images in ((one, plain[:, :4]), (other, plain[:, 4:])):
        assert torch.equal(camera[:, :2], words[5:7].expand(3, -1, -1))
        assert torch.equal(camera[:, 2:6], images)
        assert torch.equal(camera[:, 6], words[5].expand(3, -1))


def test_of_an_image_that_is_not_there_only_its_start_and_end_tokens_remain(vla: VLA, seen: Inputs) -> None:
    around = with_fields(vla, image_start=(5, 6), image_end=(7,))
    emptier = with_fields(around, empty_images=2)
    found, before = emptier.embed_images(seen.pixels), around.embed_images(seen.pixels)
    assert torch.equal(found[:, : before.shape[1]], before)
    added = vla.vlm.decoder.embed(torch.tensor([5, 6, 7] * 2)).expand(3, -1, -1)
    assert torch.equal(found[:, before.shape[1] :], added)
    plain = with_fields(vla, empty_images=2)
    assert torch.equal(plain.embed_images(seen.pixels), vla.embed_images(seen.pixels))


def test_images_and_words_never_see_the_state(open_vla: VLA, seen: Inputs) -> None:
    before = open_vla.encode(seen)
    after = open_vla.encode(replace(seen, state=seen.state + 1))
    for layer in range(4):
        places = moved(before, after, layer)
        assert not places[:, :STATE].any()
        assert places[:, STATE].all()


def test_images_see_the_words_and_the_state_sees_both(open_vla: VLA, seen: Inputs) -> None:
    before = open_vla.encode(seen)
    ids = seen.ids.clone()
    ids[:, 0] = (ids[:, 0] + 1) % 50 + 2
    last = moved(before, open_vla.encode(replace(seen, ids=ids)), 3)
    assert last[before.valid].all()
    pixels = seen.pixels.clone()
    pixels[:, 1] *= -1
    last = moved(before, open_vla.encode(replace(seen, pixels=pixels)), 3)
    assert last[before.valid].all()


def test_padded_words_change_nothing(vla: VLA, seen: Inputs) -> None:
    noise = torch.randn(3, 7, 3)
    other = replace(seen, ids=torch.where(seen.ids_valid, seen.ids, 52 - seen.ids))
    assert not torch.equal(other.ids, seen.ids)
    one, same = (vla.sample(vla.encode(inputs), noise) for inputs in (seen, other))
    torch.testing.assert_close(one, same, rtol=0, atol=1e-6)


def test_longer_padding_changes_nothing(vla: VLA, seen: Inputs) -> None:
    noise, more = torch.randn(3, 7, 3), torch.zeros(3, 5)
    padded = replace(
        seen,
        ids=torch.cat([seen.ids, more.long()], dim=1),
        ids_valid=torch.cat([seen.ids_valid, more.bool()], dim=1),
    )
    torch.testing.assert_close(
        vla.sample(vla.encode(padded), noise), vla.sample(vla.encode(seen), noise), **TOLERANCE
    )


def test_a_row_alone_equals_the_row_in_its_batch(vla: VLA, seen: Inputs) -> None:
    noise = torch.randn(3, 7, 3)
    together = vla.sample(vla.encode(seen), noise)
    for row, length in enumerate((6, 4, 2)):
        one = rows(seen, row)
        one = replace(one, ids=one.ids[:, :length], ids_valid=one.ids_valid[:, :length])
        alone = vla.sample(vla.encode(one), noise[row : row + 1])
        torch.testing.assert_close(alone, together[row : row + 1], **TOLERANCE)


def test_a_shuffled_batch_gives_shuffled_actions(vla: VLA, seen: Inputs) -> None:
    noise, order = torch.randn(3, 7, 3), torch.tensor([2, 0, 1])
    before = vla.sample(vla.encode(seen), noise)
    after = vla.sample(vla.encode(rows(seen, 2, 0, 1)), noise[order])
    torch.testing.assert_close(after, before[order], **TOLERANCE)
    assert not torch.allclose(after, before, atol=1e-2)


def test_the_actions_depend_on_every_camera_on_the_words_and_on_the_state(vla: VLA, seen: Inputs) -> None:
    noise = torch.randn(3, 7, 3)
    before = vla.sample(vla.encode(seen), noise)
    others = [
        replace(seen, pixels=seen.pixels.flip(1)),
        replace(seen, ids=(seen.ids + 7) % 50 + 2),
        replace(seen, state=-seen.state),
    ]
    for other in others:
        assert ((vla.sample(vla.encode(other), noise) - before).abs().amax((1, 2)) > 1e-5).all()


def test_repeating_a_prefix_equals_encoding_repeated_inputs(vla: VLA, seen: Inputs) -> None:
    assert_same_prefix(vla.encode(seen).repeat(2), vla.encode(rows(seen, 0, 0, 1, 1, 2, 2)))


def test_training_reads_each_scene_once_for_neighbouring_noises(vla: VLA, seen: Inputs) -> None:
    x_t, t = torch.randn(6, 7, 3), torch.rand(6)
    once = vla(seen, x_t, t)
    each = vla(rows(seen, 0, 0, 1, 1, 2, 2), x_t, t)
    assert once.shape == (6, 7, 3)
    torch.testing.assert_close(once, each, **TOLERANCE)


def test_one_step_subtracts_the_velocity_at_the_noise(vla: VLA, seen: Inputs) -> None:
    single = with_fields(vla, num_steps=1)
    noise, prefix = torch.randn(3, 7, 3), vla.encode(seen)
    expected = noise - vla.velocity(noise, torch.ones(3), prefix)
    torch.testing.assert_close(single.sample(prefix, noise), expected, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(vla.sample(prefix, noise), expected, atol=1e-4)


@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint"])
def test_the_configured_solver_is_the_one_that_samples(vla: VLA, seen: Inputs, solver: Solver) -> None:
    noise, prefix = torch.randn(3, 7, 3), vla.encode(seen)
    found = with_fields(vla, solver=solver).sample(prefix, noise)
    expected = integrate(lambda x, t: vla.velocity(x, t, prefix), noise, 4, solver)
    assert torch.equal(found, expected)
    assert torch.equal(found, vla.sample(prefix, noise)) == (solver == "euler")


def test_the_same_noise_gives_the_same_actions_bit_for_bit(vla: VLA, seen: Inputs) -> None:
    noise, prefix = torch.randn(3, 7, 3), vla.encode(seen)
    first = vla.sample(prefix, noise)
    assert torch.equal(vla.sample(prefix, noise), first)
    assert not torch.allclose(vla.sample(prefix, -noise), first, atol=1e-2)


def test_the_velocity_depends_on_the_time(vla: VLA, seen: Inputs) -> None:
    x_t, prefix = torch.randn(3, 7, 3), vla.encode(seen)
    early, late = (vla.velocity(x_t, torch.full((3,), t), prefix) for t in (0.1, 0.9))
    assert ((early - late).abs().amax((1, 2)) > 1e-4).all()


def test_gradients_reach_every_weight_that_the_velocity_uses(vla: VLA, seen: Inputs) -> None:
    loss = flow_loss(vla(seen, torch.randn(3, 7, 3), torch.rand(3)), torch.randn(3, 7, 3), torch.ones(3, 7))
    loss.backward()
    dead = {name for name, p in vla.named_parameters() if p.grad is None or not p.grad.any()}
    assert dead == {  # the expert reads the last layer's keys and values, not what the layer makes of them
        "vlm.decoder.norm.weight",
        *(
            f"vlm.decoder.blocks.3.{part}.weight"
            for part in ("attn.out", "norm_2", "mlp.gate", "mlp.up", "mlp.down")
        ),
    }


def test_time_is_told_by_sines_then_cosines_from_the_shortest_to_the_longest_period() -> None:
    t, shortest, longest = torch.tensor([0.0, 0.001, 1.0]), 0.004, 4.0
    told = embed_time(t, 4, shortest, longest)
    assert told.dtype == torch.float32
    turns = [[0.0, 0.0], [0.25, 0.00025], [250.0, 0.25]]  # t divided by the two periods
    expected = [
        [math.sin(2 * math.pi * n) for n in row] + [math.cos(2 * math.pi * n) for n in row] for row in turns
    ]
    torch.testing.assert_close(told, torch.tensor(expected), rtol=0, atol=1e-5)


def test_the_policy_runs_in_bf16(vla: VLA, seen: Inputs) -> None:
    noise = torch.randn(3, 7, 3)
    exact = vla.sample(vla.encode(seen), noise)
    vla.bfloat16()
    rounded = vla.sample(vla.encode(seen), noise)
    assert rounded.dtype == torch.float32  # the flow is followed in fp32
    torch.testing.assert_close(rounded, exact, rtol=0, atol=0.05)
    assert vla.velocity(noise, torch.ones(3), vla.encode(seen)).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_dtypes_of_the_release_leave_the_ends_and_the_crossing_keys_and_values_in_fp32(
    dtype: torch.dtype,
) -> None:
    model = build_model(SMOLVLA_BASE, "meta")
    assert isinstance(model, VLA)
    model.bfloat16().narrow(dtype)
    ends = ("state_in", "action_in", "time_in", "time_out", "action_out")
    wide = {f"{end}.{part}" for end in ends for part in ("weight", "bias")}
    wide |= {f"expert.blocks.{n}.attn.{part}.weight" for n in range(1, 16, 2) for part in ("key", "value")}
    assert len(wide) == 26
    for name, value in model.named_parameters():
        assert value.dtype == (torch.float32 if name in wide else dtype), name


def test_the_policy_acts_and_learns_in_the_dtypes_of_the_release(vla: VLA, seen: Inputs) -> None:
    noise = torch.randn(3, 7, 3)
    exact = vla.sample(vla.encode(seen), noise)
    assert vla.narrow(torch.bfloat16) is vla
    torch.testing.assert_close(vla.sample(vla.encode(seen), noise), exact, rtol=0, atol=0.05)
    velocity = vla(seen, noise, torch.rand(3))
    assert velocity.dtype == torch.float32
    velocity.square().mean().backward()
    assert all(value.grad.isfinite().all() for value in vla.parameters() if value.grad is not None)


@pytest.mark.parametrize("part", ["vlm", "expert", "state_in", "action_out"])
def test_each_part_may_have_another_dtype_than_the_rest(vla: VLA, seen: Inputs, part: str) -> None:
    noise = torch.randn(3, 7, 3)
    exact = vla.sample(vla.encode(seen), noise)
    vla.get_submodule(part).bfloat16()
    torch.testing.assert_close(vla.sample(vla.encode(seen), noise), exact, rtol=0, atol=0.05)


def test_the_same_seed_draws_the_same_weights_and_another_seed_others(vla_config: VLAConfig) -> None:
    first, same, other = (VLA(vla_config) for _ in range(3))  # PyTorch's own draws differ
    for model, seed in ((first, 3), (same, 3), (other, 4)):
        initialise(model, seed)
    for name, value in first.state_dict().items():
        assert torch.equal(value, same.state_dict()[name]), name
        constant = value.unique().numel() == 1  # gains of one, biases of zero
        assert torch.equal(value, other.state_dict()[name]) == constant, name


@pytest.mark.parametrize("part", ["images", "words", "state"])
def test_tokens_enter_a_fresh_decoder_at_a_similar_scale(vla: VLA, part: str) -> None:
    scale = math.sqrt(22)
    tokens = {
        "images": vla.vlm.encode_images(torch.rand(20, 3, 24, 24) * 2 - 1) * scale,
        "words": vla.vlm.decoder.embed(torch.arange(53)) * scale,
        "state": vla.state_in(torch.randn(50, 5)),
    }
    assert 0.5 < tokens[part].square().mean().sqrt().item() < 2
