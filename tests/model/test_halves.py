"""A policy's call in two halves: the scene is read once, and any state is felt over it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tailorbird.model.vla import Prefix
from tiny import VARIANTS, look, new_model, observed

EXACT = {"rtol": 1e-5, "atol": 1e-5}  # fp32, in one pass matrix products have other shapes
POOLED = ("mean", "max", "attention")


def flat(prefix: Prefix) -> list[Tensor]:
    return [prefix.valid, *(part for kv in prefix.layers for part in kv)]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_state_felt_over_a_scene_is_what_one_pass_over_both_makes(name: str) -> None:
    model = new_model(VARIANTS[name])
    seen = observed(model.cfg, 3, 2)
    halves = model.feel(look(model, seen), seen.state)
    model.vlm.requires_grad_()
    joint = model.encode(seen)
    assert joint.layers[-1].v.requires_grad
    torch.testing.assert_close(flat(halves), flat(joint), **EXACT)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(flat(model.encode(seen)), flat(halves), strict=True))


def test_a_scene_serves_one_state_after_the_other_and_is_not_changed() -> None:
    model = new_model()
    seen = observed(model.cfg, 2, 2)
    scene = look(model, seen)
    before = [part.clone() for kv in [*scene.layers, *scene.projected] for part in kv]
    for step in range(3):
        moved = replace(seen, state=seen.state + step)
        felt, whole = model.feel(scene, moved.state), model.encode(moved)
        assert all(torch.equal(a, b) for a, b in zip(flat(felt), flat(whole), strict=True))
    after = [part for kv in [*scene.layers, *scene.projected] for part in kv]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_in_a_frozen_vlm_the_state_alone_has_gradients() -> None:
    model = new_model()
    model.state_in.requires_grad_()
    seen = observed(model.cfg, 2, 1)
    scene = look(model, seen)
    assert not any(part.requires_grad for kv in scene.layers for part in kv)
    prefix = model.encode(seen)
    prefix.layers[-1].k.sum().backward()
    assert model.state_in.weight.grad is not None
    assert model.state_in.weight.grad.any()


@pytest.mark.parametrize("views", POOLED)
@pytest.mark.parametrize("name", ["interleaved", "marked images"])
def test_one_camera_pooled_is_the_camera(views: str, name: str) -> None:
    model = new_model(VARIANTS[name])
    seen = observed(model.cfg, 2, 1)
    joint = model.embed_images(seen.pixels)
    model.cfg = replace(model.cfg, views=views)  # type: ignore[arg-type]
    assert torch.equal(model.embed_images(seen.pixels), joint)


@pytest.mark.parametrize("views", POOLED)
def test_pooled_cameras_take_the_places_of_one_in_any_order(views: str) -> None:
    model = new_model(replace(VARIANTS["marked images"], views=views, empty_images=1))
    seen = observed(model.cfg, 2, 3)
    found, alone = model.embed_images(seen.pixels), model.embed_images(seen.pixels[:, :1])
    assert found.shape == alone.shape == (2, (2 + 4 + 1) + (2 + 1), 22)
    words = model.vlm.decoder.embed.weight
    assert torch.equal(found[0, :2], words[[3, 4]]), "the tokens around an image stand there once"
    assert torch.equal(found[0, 6:], words[[5, 3, 4, 5]]), "and those of one that is not there, as ever"
    torch.testing.assert_close(model.embed_images(seen.pixels[:, [2, 0, 1]]), found, rtol=1e-5, atol=1e-5)
    assert (found - alone).abs().max() > 0.1


def test_pools_are_what_their_names_say() -> None:
    model = new_model()
    sights = torch.randn(1, 3, 2, 22)
    scaled = sights * 22**0.5

    def pooled(views: str) -> Tensor:
        model.cfg = replace(model.cfg, views=views)  # type: ignore[arg-type]
        return model.embed_sights(sights)

    torch.testing.assert_close(pooled("mean"), scaled.sum(1) / 3)
    torch.testing.assert_close(pooled("max"), scaled.max(1).values)
    mean = sights.mean(1)
    for token in range(2):
        weight = torch.softmax(sights[0, :, token] @ mean[0, token] / 22**0.5, 0)
        torch.testing.assert_close(pooled("attention")[0, token], weight @ scaled[0, :, token])
    assert torch.equal(pooled("joint"), scaled.flatten(1, 2))


@pytest.mark.parametrize("views", POOLED)
def test_every_camera_of_a_pool_is_learned_from(views: str) -> None:
    model = new_model(replace(VARIANTS["interleaved"], views=views))
    model.vlm.requires_grad_()
    seen = observed(model.cfg, 1, 3)
    pixels = seen.pixels.clone().requires_grad_()
    x_t = torch.randn(1, model.cfg.chunk, model.cfg.action_dim)
    model(replace(seen, pixels=pixels), x_t, torch.tensor([0.5])).square().sum().backward()
    assert pixels.grad is not None
    assert (pixels.grad.abs().amax((2, 3, 4)) > 0).all()
