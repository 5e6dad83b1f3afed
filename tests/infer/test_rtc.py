"""From what a robot is committed to, to what the model is guided by."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tailorbird.errors import ConfigError, DataError
from tailorbird.infer.graphs import ReplayedVLA
from tailorbird.infer.policy import Policy
from tailorbird.infer.quant import policy_layers
from tailorbird.infer.rtc import guide_of, require_guidance, soft_mask
from tailorbird.infer.vla_openvino import CompiledVLA
from tailorbird.model.flow import Guide
from tailorbird.model.int8 import shrink
from tailorbird.model.vla import VLA
from tailorbird.processing.image import ImageSpec
from tailorbird.processing.normalize import Normalizer
from tailorbird.processing.pipeline import Pipeline
from tailorbird.processing.text import InstructionTokenizer, train_tokenizer
from tailorbird.wire import Committed, Observation
from tiny import TINY_VLA, new_model, observed

CHUNK = 7
DELAYED = replace(TINY_VLA, max_delay=4)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(
        cameras=("front",),
        image=ImageSpec(size=16),
        state=Normalizer(mean=(0.0,) * 5, std=(1.0,) * 5),
        action=Normalizer(mean=(10.0, 20.0, 30.0), std=(1.0, 2.0, 3.0)),
        tokenizer=InstructionTokenizer(train_tokenizer(("push",), 300), 24),
        hz=10.0,
        action_dim=4,
    )


def seen(actions: NDArray[np.generic] | None = None, frozen: int = 0) -> Observation:
    committed = None if actions is None else Committed(actions=actions, frozen=frozen)  # type: ignore[arg-type]
    return Observation(images={}, state=np.zeros(5, np.float32), task="push", committed=committed)


def physical(num: int) -> NDArray[np.float32]:
    return np.arange(num * 3, dtype=np.float32).reshape(num, 3)


def test_without_anything_committed_there_is_no_guide(pipeline: Pipeline) -> None:
    assert guide_of([seen(), seen()], pipeline, CHUNK) is None


@pytest.mark.parametrize(("num", "kept"), [(1, 1), (5, 5), (7, 7), (12, 7)])
def test_committed_actions_are_normalised_filled_up_and_cut_to_the_chunk(
    pipeline: Pipeline, num: int, kept: int
) -> None:
    guide = guide_of([seen(), seen(physical(num), 1)], pipeline, CHUNK)
    assert guide is not None
    assert guide.target.shape == (2, CHUNK, 4)
    expected = (physical(kept) - [10, 20, 30]) / [1, 2, 3]
    np.testing.assert_allclose(guide.target[1, :kept, :3], expected, rtol=1e-6)
    assert not guide.target[..., 3].any()
    assert not guide.weight[0].any()
    assert guide.weight[1].count_nonzero() == kept
    np.testing.assert_allclose(pipeline.write(guide.target)[1, :kept], physical(kept), rtol=1e-5)


@pytest.mark.parametrize(("frozen", "num"), [(0, 7), (2, 5), (3, 7), (0, 1), (4, 4), (0, 0)])
def test_the_mask_is_the_papers(frozen: int, num: int) -> None:
    expected = [1.0] * frozen
    for i in range(frozen, num):
        c = (num - i) / (num - frozen + 1)
        expected.append(c * (math.exp(c) - 1) / (math.e - 1))
    found = soft_mask(frozen, num, CHUNK)
    assert found.tolist() == pytest.approx(expected + [0.0] * (CHUNK - num), rel=1e-5)
    assert (found == 1).sum() == frozen


def test_no_more_is_frozen_than_is_committed_or_fits_into_the_chunk(pipeline: Pipeline) -> None:
    guide = guide_of([seen(physical(3), 99), seen(physical(20), 99)], pipeline, CHUNK)
    assert guide is not None
    assert guide.frozen.sum(1).tolist() == [3, CHUNK]


@pytest.mark.parametrize(
    ("actions", "frozen", "what"),
    [
        (np.zeros((4, 2), np.float32), 1, r"\(4, 2\): the policy's have 3 values"),
        (np.zeros(3, np.float32), 1, r"\(3,\)"),
        (np.zeros((4, 3), "<U1"), 1, "<U1"),
        (np.full((4, 3), np.nan, np.float32), 1, "must be finite"),
        (np.full((20, 3), np.inf, np.float32), 1, "must be finite"),
        (np.full((4, 3), 1e300), 1, "must be finite"),
        (np.zeros((4, 3), np.float32), -1, "frozen=-1"),
    ],
)
def test_committed_actions_that_cannot_be_are_refused(
    pipeline: Pipeline, actions: NDArray[np.generic], frozen: int, what: str
) -> None:
    with pytest.raises(DataError, match=what):
        guide_of([seen(), seen(actions, frozen)], pipeline, CHUNK)


def guide(batch: int) -> Guide:
    """Another number of frozen actions for each row, none for the first."""
    target = torch.randn(batch, CHUNK, 3, generator=torch.Generator().manual_seed(4))
    return Guide(target, torch.stack([soft_mask(row, min(2 * row, CHUNK), CHUNK) for row in range(batch)]))


def act(model: VLA, batch: int, guide: Guide | None) -> Tensor:
    noise = torch.randn(batch, CHUNK, 3, generator=torch.Generator().manual_seed(5))
    given = observed(model.cfg, batch, 2)
    with torch.inference_mode():
        scene = model.look(
            model.see(given.pixels.flatten(0, 1)).unflatten(0, (batch, 2)), given.ids, given.ids_valid
        )
        return model.act_on(scene, given.state, noise, guide)


@pytest.mark.parametrize("build", [lambda m: m, ReplayedVLA, lambda m: CompiledVLA(m, "float32")])
def test_any_engine_holds_given_actions_bit_for_bit_and_the_rest_goes_on_from_them(
    build: Callable[[VLA], VLA],
) -> None:
    model = build(new_model(DELAYED))
    for batch in (4, 1, 3):
        given = guide(batch)
        found, free = act(model, batch, given), act(model, batch, None)
        assert torch.equal(found[given.frozen], given.target[given.frozen])
        torch.testing.assert_close(found, act(new_model(DELAYED), batch, given), rtol=1e-5, atol=1e-5)
        changed = (found - free).abs().amax((1, 2)) > 1e-3
        assert changed.tolist() == [False, True, True, True][:batch]
        torch.testing.assert_close(free, act(new_model(), batch, None), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8"])
def test_a_policy_goes_on_from_the_chunk_that_a_robot_executes(pipeline: Pipeline, kind: str) -> None:
    model = new_model().narrow(torch.bfloat16 if kind == "bf16" else torch.float32)
    if kind == "int8":
        shrink(model, policy_layers(model))
    policy = Policy(model, replace(pipeline, action_dim=0))
    picture = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    one = replace(seen(), images={"front": picture})
    before = policy.act(one).actions[2:]  # two were executed while the policy was looking
    later = replace(one, committed=Committed(actions=before, frozen=3))
    apart, near = (np.abs(policy.act(look).actions[:3] - before[:3]).mean() for look in (one, later))
    assert near < 0.2 * apart


def test_a_replayed_policy_follows_a_guide_as_its_model_does() -> None:
    model = new_model()
    for batch in (4, 2):
        found = act(ReplayedVLA(model), batch, guide(batch))
        torch.testing.assert_close(found, act(model, batch, guide(batch)), rtol=1e-4, atol=1e-4)
        assert (found - act(model, batch, None)).abs().max() > 0.1


def test_a_compiled_policy_that_never_was_given_actions_says_so() -> None:
    compiled = CompiledVLA(new_model(), "float32")
    with pytest.raises(ConfigError, match=r"take the engine torch, or .* --train\.max-delay"):
        act(compiled, 2, guide(2))
    with pytest.raises(ConfigError, match="the engine openvino does not compute"):
        require_guidance(compiled)
    require_guidance(new_model())
    require_guidance(CompiledVLA(new_model(DELAYED), "float32"))
