"""The policy network against lerobot's SmolVLA: same actions, velocities, losses and gradients.

Both get the same pictures, token ids, state and noise. They pad instructions and missing cameras; here what
is not there is not made. Preparing observations is compared elsewhere.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lerobot_reference import build_policy
from released import CFG, write_released
from tailorbird.checkpoint.smolvla import vla_rules
from tailorbird.checkpoint.table import convert
from tailorbird.errors import ConfigError
from tailorbird.model.build import build_model
from tailorbird.model.config import ExpertConfig, VLAConfig, VLMConfig
from tailorbird.model.flow import flow_loss, interpolate, trajectory
from tailorbird.model.vla import VLA
from tailorbird.types import Inputs

pytestmark = pytest.mark.parity

VLM = replace(  # of its six decoder layers a policy takes the first few
    CFG,
    vision=replace(CFG.vision, mlp_dim=42),
    decoder=replace(CFG.decoder, width=40, num_layers=6, num_heads=4),
)
CAMERAS = ("camera1", "camera2", "camera3")
EXACT = {"rtol": 1e-5, "atol": 1e-5}  # fp32
FOUR = {"num_vlm_layers": 4}
SIX = {"num_vlm_layers": 6}
LAYOUTS: dict[str, dict[str, Any]] = {
    "every second layer does not cross": {},
    "every third layer does not cross": {"self_attn_every_n_layers": 3},
    "no layer crosses, by number": {"self_attn_every_n_layers": 1},
    "no layer crosses, by mode": {"attention_mode": "self_attn"},
    "all layers cross": {"self_attn_every_n_layers": -1},
    "all cross, half as many": {"self_attn_every_n_layers": 0, "num_expert_layers": 2},
    "all but the first cross, half as many": {"self_attn_every_n_layers": 4, "num_expert_layers": 2},
    "all but the first cross, a third": {**SIX, "self_attn_every_n_layers": 7, "num_expert_layers": 2},
    "a narrow expert": {"expert_width_multiplier": 0.5},
    "a wide expert": {"expert_width_multiplier": 0.75},
}
UNABLE: dict[str, dict[str, Any]] = {  # lerobot stops where a layer without a counterpart does not cross
    "one expert layer for four": {"num_expert_layers": 1},
    "half as many, no layer crosses": {"num_expert_layers": 2, "attention_mode": "self_attn"},
    "half as many, every third": {**SIX, "num_expert_layers": 3, "self_attn_every_n_layers": 3},
}
OTHER: dict[str, dict[str, Any]] = {
    "a short chunk": {"chunk_size": 3, "n_action_steps": 3},
    "a long chunk of which few actions are used": {"chunk_size": 13, "n_action_steps": 2},
    "one step": {"num_steps": 1},
    "four steps": {"num_steps": 4},
    "tokens around each image": {"add_image_special_tokens": True},
    "tokens around images that are not there": {"add_image_special_tokens": True, "empty_cameras": 2},
    "a longer prefix than needed": {"prefix_length": 99},
    "all layers that the decoder has": {"num_vlm_layers": 0},
    "other periods": {"min_period": 0.02, "max_period": 1.5},
}


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vlm")
    write_released(folder, VLM)
    return folder


@dataclass(frozen=True)
class Scene:
    """The same observations for both."""

    theirs: dict[str, Tensor]
    ours: Inputs
    noise: Tensor  # (B, L, A)
    actions: Tensor  # (B, L, A)
    time: Tensor  # (B,)

    def batch(self) -> dict[str, Tensor]:
        return {**self.theirs, "action": self.actions.clone()}

    def loss(self, model: VLA) -> Tensor:
        x_t, target = interpolate(self.actions, self.noise, self.time)
        valid = torch.ones(self.actions.shape[:2], dtype=torch.bool)
        return flow_loss(model(self.ours, x_t, self.time), target, valid) / valid.sum()

    @torch.no_grad()
    def act(self, model: VLA) -> Tensor:
        return model.sample(model.encode(self.ours), self.noise)


def config_of(policy: Any, vlm: VLMConfig) -> VLAConfig:
    theirs, network = policy.config, policy.model.vlm_with_expert
    every = theirs.self_attn_every_n_layers
    crossing = "interleaved" if every > 0 else "cross"
    return VLAConfig(
        vlm=replace(
            vlm, decoder=replace(vlm.decoder, num_layers=network.num_vlm_layers, rope_theta=10_000.0)
        ),
        expert=ExpertConfig(
            width=network.expert_hidden_size,
            mlp_dim=network.lm_expert.config.intermediate_size,
            num_layers=network.num_expert_layers,
            attention=crossing if "cross" in theirs.attention_mode else "self",
            self_attn_every=max(1, every),
        ),
        state_dim=theirs.max_state_dim,
        action_dim=theirs.max_action_dim,
        chunk=theirs.chunk_size,
        num_steps=theirs.num_steps,
        min_period=theirs.min_period,
        max_period=theirs.max_period,
        image_start=tuple(policy.model.global_image_start_token.tolist() * theirs.add_image_special_tokens),
        image_end=tuple(policy.model.image_end_token.tolist() * theirs.add_image_special_tokens),
        empty_images=theirs.empty_cameras,
    )


def build_pair(folder: Path, vlm: VLMConfig = VLM, **settings: Any) -> tuple[Any, VLA]:
    policy = build_policy(folder, **{"action": 11, "cameras": CAMERAS, **FOUR, **settings})
    cfg = config_of(policy, vlm)
    model = build_model(cfg, "meta")
    assert isinstance(model, VLA)
    model.load_state_dict(convert(policy.state_dict(), vla_rules(cfg)), assign=True)
    return policy, model.eval()


def make_scene(cfg: VLAConfig, cameras: int = 2, batch: int = 3, words: int = 24) -> Scene:
    """Instructions of different lengths, a state narrower than the model takes."""
    draw, side = torch.Generator().manual_seed(7), cfg.vlm.vision.image_size
    pictures = torch.rand(batch, cameras, 3, side, side, generator=draw)
    lengths = torch.arange(5, 5 + 3 * batch, 3)
    ids = torch.randint(2, cfg.vlm.decoder.vocab, (batch, words), generator=draw)
    ids_valid = torch.arange(words) < lengths[:, None]
    state = torch.randn(batch, 5, generator=draw)
    theirs = {
        "observation.state": state,
        "observation.language.tokens": ids,
        "observation.language.attention_mask": ids_valid,
        **{f"observation.images.{name}": pictures[:, i] for i, name in enumerate(CAMERAS[:cameras])},
    }
    longest = int(lengths.max())
    ours = Inputs(
        pixels=pictures * 2 - 1,
        ids=ids[:, :longest],
        ids_valid=ids_valid[:, :longest],
        state=F.pad(state, (0, cfg.state_dim - 5)),
    )
    shape = (batch, cfg.chunk, cfg.action_dim)
    noise, actions = (torch.randn(shape, generator=draw) for _ in range(2))
    return Scene(theirs, ours, noise, actions, torch.rand(batch, generator=draw))


def narrow_policy(policy: Any) -> None:
    """As released: all in bf16 but the ends, and the keys and values of the layers that cross."""
    for key, value in policy.named_parameters():
        crosses = "lm_expert" in key and ("k_proj" in key or "v_proj" in key) and int(key.split(".")[4]) % 2
        if "vlm_with_expert" in key and not crosses:
            value.data = value.data.bfloat16()


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("cameras", [1, 2, 3])
def test_the_actions_are_those_of_the_reference(vlm: Path, cameras: int, batch: int) -> None:
    policy, model = build_pair(vlm, cameras=CAMERAS[:cameras])
    scene = make_scene(model.cfg, cameras, batch)
    expected = policy.predict_action_chunk(scene.theirs, noise=scene.noise)
    assert (expected - scene.noise).abs().mean() > 0.1
    torch.testing.assert_close(scene.act(model), expected, **EXACT)


@pytest.mark.parametrize("settings", [*LAYOUTS.values(), *OTHER.values()], ids=[*LAYOUTS, *OTHER])
def test_every_setting_acts_as_in_the_reference(vlm: Path, settings: dict[str, Any]) -> None:
    policy, model = build_pair(vlm, **settings)
    scene = make_scene(model.cfg)
    torch.testing.assert_close(
        scene.act(model), policy.predict_action_chunk(scene.theirs, noise=scene.noise), **EXACT
    )


def test_a_decoder_whose_head_is_its_embedding_acts_as_in_the_reference(tmp_path: Path) -> None:
    tied = replace(VLM, decoder=replace(VLM.decoder, tied=True))
    write_released(tmp_path / "vlm", tied)
    policy, model = build_pair(tmp_path / "vlm", tied)
    scene = make_scene(model.cfg)
    torch.testing.assert_close(
        scene.act(model), policy.predict_action_chunk(scene.theirs, noise=scene.noise), **EXACT
    )


@pytest.mark.parametrize("empty", [0, 1, 2], ids=["left out", "one black", "two black"])
def test_a_camera_that_is_not_there_is_not_made_and_nothing_changes(vlm: Path, empty: int) -> None:
    policy, model = build_pair(vlm, empty_cameras=empty)
    scene = make_scene(model.cfg, cameras=1)
    given, masks = policy.prepare_images(scene.theirs)
    assert [bool(mask.all()) for mask in masks] == [True] + [False] * empty
    assert all(picture.eq(-1).all() for picture in given[1:])
    torch.testing.assert_close(
        scene.act(model), policy.predict_action_chunk(scene.theirs, noise=scene.noise), **EXACT
    )


@pytest.mark.parametrize("num_steps", [4, 10])
def test_the_velocity_of_every_step_is_that_of_the_reference(
    vlm: Path, num_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, model = build_pair(vlm, num_steps=num_steps)
    scene, network = make_scene(model.cfg), policy.model
    expected: list[Tensor] = []
    theirs = network.denoise_step
    monkeypatch.setattr(
        network, "denoise_step", lambda **given: expected.append(theirs(**given)) or expected[-1]
    )
    policy.predict_action_chunk(scene.theirs, noise=scene.noise)
    with torch.no_grad():
        prefix = model.encode(scene.ours)
        steps = trajectory(lambda x, t: model.velocity(x, t, prefix), scene.noise, num_steps)
        found = [velocity for _, velocity in steps]
    assert len(expected) == num_steps
    torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize(
    "settings",
    [*LAYOUTS.values(), *UNABLE.values(), OTHER["tokens around each image"]],
    ids=[*LAYOUTS, *UNABLE, "tokens around each image"],
)
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "all trained"])
def test_the_loss_and_the_gradient_of_every_weight_are_those_of_the_reference(
    vlm: Path, settings: dict[str, Any], frozen: bool
) -> None:
    policy, model = build_pair(vlm, **settings, train_expert_only=frozen, freeze_vision_encoder=frozen)
    model.vlm.requires_grad_(not frozen)
    scene = make_scene(model.cfg)
    expected, _ = policy.forward(scene.batch(), noise=scene.noise, time=scene.time)
    found = scene.loss(model)
    torch.testing.assert_close(found, expected, **EXACT)
    expected.backward()
    found.backward()
    theirs = {
        key: torch.zeros_like(value) if value.grad is None else value.grad
        for key, value in policy.named_parameters()
    }
    for name, gradient in convert(theirs, vla_rules(model.cfg)).items():
        own = model.get_parameter(name).grad
        own = torch.zeros_like(gradient) if own is None else own
        torch.testing.assert_close(
            own, gradient, rtol=1e-4, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )
    assert any(value.any() for key, value in theirs.items() if ".vlm." in key) != frozen


def test_the_reference_learns_what_lies_past_the_end_of_an_episode_and_here_it_is_left_out(vlm: Path) -> None:
    policy, model = build_pair(vlm)
    scene = make_scene(model.cfg)
    beyond = torch.arange(model.cfg.chunk) >= torch.tensor([[7], [4], [2]])  # (B, L)
    known, _ = policy.forward(scene.batch(), noise=scene.noise, time=scene.time)
    masked, _ = policy.forward({**scene.batch(), "action_is_pad": beyond}, noise=scene.noise, time=scene.time)
    assert torch.equal(masked, known)
    x_t, target = interpolate(scene.actions, scene.noise, scene.time)
    with torch.no_grad():
        velocity = model(scene.ours, x_t, scene.time)
    expected = (velocity - target)[~beyond].square().mean()
    torch.testing.assert_close(flow_loss(velocity, target, ~beyond) / (~beyond).sum(), expected, **EXACT)
    assert not torch.isclose(expected, known, rtol=1e-2)


@pytest.mark.parametrize("settings", UNABLE.values(), ids=UNABLE)
def test_what_the_reference_can_only_train_acts_here(vlm: Path, settings: dict[str, Any]) -> None:
    policy, model = build_pair(vlm, **settings)
    scene = make_scene(model.cfg)
    with pytest.raises((RuntimeError, ValueError), match="non-empty list"):
        policy.predict_action_chunk(scene.theirs, noise=scene.noise)
    assert scene.act(model).isfinite().all()


def test_an_expert_that_the_reference_cannot_run_is_refused(vlm: Path) -> None:
    policy = build_policy(vlm, action=11, **SIX, num_expert_layers=3)
    with pytest.raises(ConfigError, match="expert layer 1 reads decoder layer 2"):
        config_of(policy, VLM)
    scene = make_scene(build_pair(vlm, **SIX)[1].cfg)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        policy.predict_action_chunk(scene.theirs, noise=scene.noise)


def test_with_the_dtypes_of_the_release_actions_correlate_with_the_reference_and_with_fp32(vlm: Path) -> None:
    policy, model = build_pair(vlm)
    scene = make_scene(model.cfg, batch=4)
    exact = scene.act(model)
    model.narrow(torch.bfloat16)
    narrow_policy(policy)
    released = convert(policy.state_dict(), vla_rules(model.cfg))
    assert all(torch.equal(value, released[name]) for name, value in model.state_dict().items())
    assert {name: value.dtype for name, value in model.state_dict().items()} == {
        name: value.dtype for name, value in released.items()
    }
    found, expected = scene.act(model), policy.predict_action_chunk(scene.theirs, noise=scene.noise)
    assert found.dtype == expected.dtype == torch.float32
    found, expected, exact = (end - scene.noise for end in (found, expected, exact))  # the noise is shared
    figures = correlation(found, expected), correlation(found, exact), correlation(expected, exact)
    print("bf16: ours and theirs {:.6f}, ours and fp32 {:.6f}, theirs and fp32 {:.6f}".format(*figures))
    assert min(figures) >= 0.999
