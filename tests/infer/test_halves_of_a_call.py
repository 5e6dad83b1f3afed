"""A policy looks and acts in two calls, for one robot or for several, from one thread or from two."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from tailorbird.errors import ConfigError, DataError
from tailorbird.infer.graphs import ReplayedVLA
from tailorbird.infer.policy import Policy
from tailorbird.infer.vla_openvino import CompiledVLA
from tailorbird.processing.image import ImageSpec
from tailorbird.processing.normalize import Normalizer
from tailorbird.processing.pipeline import Pipeline
from tailorbird.processing.text import InstructionTokenizer, train_tokenizer
from tailorbird.wire import Committed, Observation
from tiny import new_model

ENGINES = ("torch", "graphs", "openvino")


def new_policy(engine: str = "torch") -> Policy:
    pipeline = Pipeline(
        cameras=("wrist", "front"),
        image=ImageSpec(size=16),
        state=Normalizer(mean=(0.0,) * 5, std=(2.0,) * 5),
        action=Normalizer(mean=(10.0, 20.0, 30.0), std=(1.0, 2.0, 3.0)),
        tokenizer=InstructionTokenizer(train_tokenizer(["open", "push it"], 300), 24),
        hz=10.0,
    )
    model = new_model()
    if engine == "openvino":
        pytest.importorskip("openvino")
        model = CompiledVLA(model, "float32")
    elif engine == "graphs":
        model = ReplayedVLA(model)
    return Policy(model, pipeline)


def at(number: int) -> Observation:
    """Another picture, state and time for each number."""
    rng = np.random.default_rng(number)
    return Observation(
        images={name: rng.integers(0, 256, (20, 24, 3), np.uint8) for name in ("wrist", "front")},
        state=rng.normal(size=5).astype(np.float32),
        task="open",
        time_s=float(number),
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_acting_is_looking_and_then_acting_on_what_was_seen(engine: str) -> None:
    policy = new_policy(engine)
    whole = policy.act(at(1))
    policy.reset()
    scene = policy.look(at(1))
    halves = policy.act_on(scene, at(1))
    assert np.array_equal(halves.actions, whole.actions)
    assert halves.time_s == halves.scene_time_s == scene.time_s == 1
    assert scene.infer_ms.keys() == {"prepare", "encode"}
    assert halves.infer_ms.keys() == {"prepare", "denoise"}
    assert whole.infer_ms.keys() == {"prepare", "encode", "denoise"}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_scene_is_used_again_with_the_newest_state_and_nothing_else_of_the_observation(engine: str) -> None:
    policy = new_policy(engine)
    scene = policy.look(at(1))
    policy.reset()
    later = policy.act_on(scene, replace(at(2), images={}, task="push it"))
    policy.reset()
    expected = policy.act(replace(at(1), state=at(2).state))
    assert np.array_equal(later.actions, expected.actions)
    assert (later.time_s, later.scene_time_s) == (2, 1)
    policy.reset()
    assert not np.array_equal(policy.act_on(scene, at(3)).actions, later.actions)


def test_the_oldest_picture_is_the_age_of_the_scene() -> None:
    policy, seen = new_policy(), replace(at(9), image_time_s={"front": 8.25, "nobody's": 1.0})
    assert policy.act(seen).scene_time_s == policy.look(seen).time_s == 8.25
    (chunk,) = policy.act_batch([seen])
    assert (chunk.time_s, chunk.scene_time_s) == (9, 8.25)


@pytest.mark.parametrize("engine", ENGINES)
def test_looking_and_acting_at_the_same_time_do_not_disturb_each_other(engine: str) -> None:
    policy = new_policy(engine)
    scenes = [policy.look(at(number)) for number in range(3)]
    policy.reset()
    alone = [policy.act_on(scenes[i % 3], at(i)).actions for i in range(12)]
    policy.reset()
    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(lambda: [policy.look(at(i % 3)) for i in range(12)])
        beside = [policy.act_on(scenes[i % 3], at(i)).actions for i in range(12)]
    assert all(np.array_equal(a, b) for a, b in zip(alone, beside, strict=True))
    for i, again in enumerate(looking.result()):
        policy.reset()
        first = policy.act_on(scenes[i % 3], at(i)).actions
        policy.reset()
        np.testing.assert_allclose(policy.act_on(again, at(i)).actions, first, rtol=1e-5, atol=1e-4)


def test_robots_that_share_a_policy_act_as_each_would_alone() -> None:
    policy, alone = new_policy(), [new_policy() for _ in range(3)]
    sessions = [policy.new_session() for _ in alone]
    for seed, (session, other) in enumerate(zip(sessions, alone, strict=True)):
        session.reset(seed)
        other.reset(seed)
    for step in range(3):
        rows = [0, 2] if step == 1 else [0, 1, 2]  # one has nothing to ask
        seen = [at(10 * row + step // 2) for row in rows]  # and the picture of step 1 is that of step 0
        found = policy.act_batch(seen, sessions=[sessions[row] for row in rows])
        for row, one, chunk in zip(rows, seen, found, strict=True):
            np.testing.assert_allclose(chunk.actions, alone[row].act(one).actions, rtol=1e-5, atol=1e-4)
    assert [one.views.num_same for one in sessions] == [2, 0, 2]
    assert policy.session.generation == 0
    assert [one.generation for one in sessions] == [1, 1, 1]


def test_every_robot_needs_a_session_of_its_own() -> None:
    policy = new_policy()
    one = policy.new_session()
    for sessions in ([one], [one, one], [], [one, policy.new_session(), one]):
        with pytest.raises(DataError, match=r"2 observations, . sessions: each robot needs one of its own"):
            policy.act_batch([at(1), at(2)], sessions=sessions)


@pytest.mark.parametrize("engine", ["torch", "graphs"])
def test_what_a_robot_is_committed_to_guides_its_chunk_and_no_other(engine: str) -> None:
    policy, noise = new_policy(engine), torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(1))
    free = policy.act_batch([at(1), at(2)], noise)
    last = Committed(actions=free[0].actions[:5] + 3, frozen=2)
    bound = policy.act_batch([replace(at(1), committed=last), at(2)], noise)
    misses = [np.abs(chunk.actions[:2] - last.actions[:2]).mean() for chunk in (free[0], bound[0])]
    assert misses[1] < 0.5 * misses[0]
    np.testing.assert_allclose(bound[1].actions, free[1].actions, rtol=1e-4, atol=1e-4)


def test_an_engine_without_a_gradient_refuses_to_be_guided() -> None:
    policy = new_policy("openvino")
    last = Committed(actions=np.zeros((4, 3), np.float32), frozen=1)
    with pytest.raises(ConfigError, match="take the engine torch"):
        policy.act(replace(at(1), committed=last))
    assert policy.session.views.num_encoded == 0, "at once"


def test_what_is_wrong_with_a_state_is_said_before_anything_is_encoded() -> None:
    policy = new_policy()
    with pytest.raises(DataError, match="5 finite state values"):
        policy.act(replace(at(1), state=np.full(5, np.nan, np.float32)))
    assert policy.session.views.num_encoded == 0
