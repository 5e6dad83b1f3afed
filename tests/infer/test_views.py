"""Pictures that did not change are not encoded again, and a slow camera's last one serves for a while."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lerobot_folder import write_folder
from tailorbird.checkpoint.policy import read_policy, write_policy
from tailorbird.errors import ConfigError, DataError
from tailorbird.infer.policy import Policy, load_policy
from tailorbird.infer.views import LastViews
from tailorbird.infer.vla_openvino import CompiledVLA
from tailorbird.model.vla import VLA
from tailorbird.wire import Observation
from tiny import new_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cameras: top, image."""
    return write_folder(tmp_path_factory.mktemp("policy") / "it")


def open_policy(folder: Path, max_view_age_s: float = 0.0) -> Policy:
    """With weights under which everything matters."""
    loaded = load_policy(folder, device="cpu", max_view_age_s=max_view_age_s)
    loaded.model.load_state_dict(new_model(loaded.model.cfg).state_dict())
    return loaded


def count(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that go through the image tower from now on."""
    sizes: list[int] = []
    see = policy.model.see
    monkeypatch.setattr(policy.model, "see", lambda pixels: (sizes.append(len(pixels)), see(pixels))[1])
    return sizes


def seen(top: int, image: int, time_s: float = 0.0) -> Observation:
    """Pictures by number."""
    pictures = {
        name: np.random.default_rng(number).integers(0, 256, (20, 24, 3), np.uint8)
        for name, number in (("top", top), ("image", image))
    }
    state = np.array([0, 1, 2, 3, 4], np.float32)
    return Observation(images=pictures, state=state, task="pick it up", time_s=time_s)


def without(one: Observation, name: str) -> Observation:
    return replace(one, images={key: value for key, value in one.images.items() if key != name})


def test_only_pictures_that_changed_are_encoded_and_the_actions_are_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, plain = open_policy(folder), open_policy(folder)
    sizes = count(policy, monkeypatch)
    for top, image in ((1, 2), (1, 2), (1, 3), (4, 3), (4, 3), (3, 4), (5, 6)):
        plain.session.views.forget()
        found, expected = policy.act(seen(top, image)).actions, plain.act(seen(top, image)).actions
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert sizes == [2, 1, 1, 2, 2]
    views = policy.session.views
    assert (views.num_same, views.num_encoded, views.num_late) == (6, 8, 0)


def test_with_batches_of_the_same_size_a_remembered_view_is_the_encoded_one_bit_for_bit(folder: Path) -> None:
    policy, plain = open_policy(folder), open_policy(folder)
    for _ in range(3):
        plain.session.views.forget()
        assert np.array_equal(policy.act(seen(1, 2)).actions, plain.act(seen(1, 2)).actions)
    assert policy.session.views.num_same == 4


def test_an_engine_that_encodes_pictures_one_by_one_acts_the_same_bit_for_bit(folder: Path) -> None:
    pytest.importorskip("openvino")
    base = open_policy(folder)
    model = CompiledVLA(base.model, "float32")
    policy, plain = (Policy(model, base.pipeline) for _ in range(2))
    for top, image in ((1, 2), (1, 3), (4, 3)):
        plain.session.views.forget()
        assert np.array_equal(policy.act(seen(top, image)).actions, plain.act(seen(top, image)).actions)
    assert policy.session.views.num_same == 2


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_a_buffer_that_the_robot_writes_to_again_is_another_picture(folder: Path, kind: str) -> None:
    policy, one = open_policy(folder), seen(1, 2)
    buffers = {name: torch.from_numpy(picture) for name, picture in one.images.items()}
    shown = replace(one, images=buffers) if kind == "tensor" else one  # type: ignore[arg-type]
    policy.look(shown)
    one.images["top"][:] ^= 255
    policy.look(shown)
    assert policy.session.views.num_same == 1, "the other camera's"


def test_a_camera_that_is_late_is_seen_as_it_was_and_the_chunk_says_how_old_it_is(folder: Path) -> None:
    policy = open_policy(folder, max_view_age_s=0.5)
    policy.act(seen(1, 2, 10.0))
    chunk = policy.act(without(seen(3, 4, 10.25), "top"))
    assert (chunk.time_s, chunk.scene_time_s) == (10.25, 10.0)
    assert policy.session.views.num_late == 1
    policy.reset()
    expected = policy.act(seen(1, 4, 10.25)).actions
    policy.reset()
    policy.look(seen(1, 2, 10.0))
    found = policy.act(without(seen(3, 4, 10.25), "top")).actions
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    policy.look(without(seen(3, 4, 10.5), "top"))  # its age counts from the picture, not from its last use
    with pytest.raises(
        DataError, match=r"no picture from 'top', and its last one is 0\.75 s old, where max_"
    ):
        policy.look(without(seen(3, 4, 10.75), "top"))
    with pytest.raises(DataError, match=r"last one is -1 s old"):  # another clock
        policy.look(without(seen(3, 4, 9.0), "top"))


def test_a_new_episode_has_seen_nothing(folder: Path) -> None:
    policy = open_policy(folder, max_view_age_s=0.5)
    policy.act(seen(1, 2))
    before = policy.session.views.match(seen(1, 2), policy.pipeline)
    policy.reset()
    with pytest.raises(DataError, match=r"no picture from \['top'\]: the observation has \['image'\]"):
        policy.look(without(seen(1, 2), "top"))
    before.views.keep(before, before.now, 0)  # what a look of the last episode does when it ends
    with pytest.raises(DataError, match="no picture from"):
        policy.look(without(seen(1, 2), "top"))


def test_unless_it_is_allowed_every_camera_has_to_show_a_picture(folder: Path) -> None:
    policy = open_policy(folder)
    policy.act(seen(1, 2))
    with pytest.raises(DataError, match=r"no picture from \['top'\]"):
        policy.act(without(seen(1, 2), "top"))
    with pytest.raises(ConfigError, match="max_view_age_s=-1"):
        LastViews(-1)
    with pytest.raises(ConfigError, match="max_view_age_s=nan"):
        LastViews(float("nan"))


def test_how_cameras_are_put_together_is_saved_in_our_layout_only_and_may_be_changed_when_loading(
    folder: Path, tmp_path: Path
) -> None:
    joint = open_policy(folder)
    pooled = VLA(replace(joint.model.cfg, views="attention"))
    pooled.load_state_dict(joint.model.state_dict())
    with pytest.raises(ConfigError, match=r"pools them \(views='attention'\): save it in Tailorbird's own"):
        write_policy(tmp_path, pooled.state_dict(), pooled.cfg, joint.pipeline)
    write_policy(tmp_path, pooled.state_dict(), pooled.cfg, replace(joint.pipeline, lerobot=None))
    assert read_policy(tmp_path)[0].cfg.views == "attention"
    noise = torch.zeros(1, 7, 11)
    actions = {
        views: load_policy(tmp_path, device="cpu", views=views).act_batch([seen(1, 2)], noise)[0].actions
        for views in (None, "attention", "joint", "max")
    }
    assert np.array_equal(actions[None], actions["attention"])
    assert np.array_equal(actions["joint"], joint.act_batch([seen(1, 2)], noise)[0].actions)
    assert np.abs(actions["max"] - actions["attention"]).max() > 1e-3
    with pytest.raises(ConfigError, match="no views 'sum': there are joint, mean, max, attention"):
        load_policy(tmp_path, device="cpu", views="sum")  # type: ignore[arg-type]
