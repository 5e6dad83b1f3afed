"""A policy acts: alone or for several robots, the same for the same seed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tailorbird
from tailorbird.checkpoint.policy import write_policy
from tailorbird.errors import CheckpointError, ConfigError, DataError
from tailorbird.infer.policy import Policy, load_policy
from tailorbird.model.init import initialise
from tailorbird.model.vla import VLA
from tailorbird.processing.image import ImageSpec
from tailorbird.processing.normalize import Normalizer
from tailorbird.processing.pipeline import Pipeline
from tailorbird.processing.text import InstructionTokenizer, train_tokenizer
from tailorbird.wire import Observation
from tiny import TINY_VLA

TASKS = ("open the drawer", "push", "close the window slowly")


@pytest.fixture
def policy() -> Policy:
    model = VLA(TINY_VLA)
    initialise(model, 0)
    pipeline = Pipeline(
        cameras=("wrist", "front"),
        image=ImageSpec(size=16),
        state=Normalizer(mean=(0.0,) * 5, std=(2.0,) * 5),
        action=Normalizer(mean=(10.0, 20.0, 30.0), std=(1.0, 2.0, 3.0)),
        tokenizer=InstructionTokenizer(train_tokenizer(TASKS, 300), 24),
        hz=10.0,
    )
    return Policy(model, pipeline)


@pytest.fixture
def seen() -> list[Observation]:
    rng = np.random.default_rng(0)
    return [
        Observation(
            images={name: rng.integers(0, 256, (20, 24, 3), np.uint8) for name in ("wrist", "front")},
            state=rng.normal(size=5).astype(np.float32),
            task=task,
            time_s=7.0 + number,
        )
        for number, task in enumerate(TASKS)
    ]


def test_acting_alone_is_acting_for_a_batch_of_one(policy: Policy, seen: list[Observation]) -> None:
    alone = policy.act(seen[0])
    policy.reset()
    (same,) = policy.act_batch(seen[:1])
    assert np.array_equal(alone.actions, same.actions)
    assert alone.time_s == same.time_s == 7.0


def test_each_robot_of_a_batch_gets_the_chunk_it_would_get_alone_from_the_same_noise(
    policy: Policy, seen: list[Observation]
) -> None:
    together = policy.act_batch(seen)
    noise = torch.randn(3, 7, 3, generator=torch.Generator().manual_seed(0))
    for row, one in enumerate(seen):
        with torch.inference_mode():
            prefix = policy.model.encode(policy.pipeline.read([one]))
            actions = policy.pipeline.write(policy.model.sample(prefix, noise[row : row + 1]))
        np.testing.assert_allclose(together[row].actions, actions[0], rtol=1e-5, atol=1e-4)
        assert together[row].time_s == one.time_s


def test_a_chunk_is_in_physical_units_and_says_what_it_cost(policy: Policy, seen: list[Observation]) -> None:
    chunk = policy.act(seen[0])
    assert chunk.actions.shape == (7, 3)
    assert chunk.actions.dtype == np.float32
    assert np.abs(chunk.actions.mean(axis=0) - [10.0, 20.0, 30.0]).max() < 6
    assert chunk.infer_ms.keys() == {"prepare", "encode", "denoise"}
    assert min(chunk.infer_ms.values()) > 0


def test_the_same_seed_gives_the_same_episode_and_another_seed_another(
    policy: Policy, seen: list[Observation]
) -> None:
    def episode(seed: int) -> list[list[float]]:
        policy.reset(seed)
        return [policy(one).actions.ravel().tolist() for one in [seen[0], seen[0], seen[1]]]

    first = episode(3)
    assert episode(3) == first
    assert episode(4) != first
    assert first[0] != first[1]  # the same observation, but the next noise


def test_the_global_generator_does_not_matter(policy: Policy, seen: list[Observation]) -> None:
    first = policy.act(seen[0]).actions
    policy.reset()
    torch.manual_seed(99)
    assert np.array_equal(policy.act(seen[0]).actions, first)


def test_acting_needs_no_gradients(policy: Policy) -> None:
    assert not policy.model.training
    assert not any(parameter.requires_grad for parameter in policy.model.parameters())


@pytest.mark.parametrize("name", ["vlm.connector.proj.weight", "action_out.bias"])
def test_damaged_weights_never_become_actions(policy: Policy, seen: list[Observation], name: str) -> None:
    policy.model.get_parameter(name)[0] = float("nan")
    with pytest.raises(DataError, match="the policy's actions are not finite"):
        policy.act(seen[0])


def test_what_is_wrong_with_an_observation_reaches_the_caller(
    policy: Policy, seen: list[Observation]
) -> None:
    with pytest.raises(DataError, match=r"no picture from \['front'\]"):
        policy.act(replace(seen[0], images={"wrist": seen[0].images["wrist"]}))
    with pytest.raises(DataError, match="the policy reads 24: shorten it"):
        policy.act(replace(seen[0], task="x" * 50))


def test_a_policy_from_its_folder_acts_like_the_one_that_was_saved(
    policy: Policy, seen: list[Observation], tmp_path: Path
) -> None:
    write_policy(tmp_path, policy.model.state_dict(), policy.model.cfg, policy.pipeline)
    loaded = load_policy(str(tmp_path))
    for one in seen:
        assert np.array_equal(loaded.act(one).actions, policy.act(one).actions)


def test_the_public_name_loads_a_policy_or_says_why_not(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        tailorbird.load_policy(tmp_path)


def test_steps_solver_and_dtype_can_be_others_than_saved(
    policy: Policy, seen: list[Observation], tmp_path: Path
) -> None:
    write_policy(tmp_path, policy.model.state_dict(), policy.model.cfg, policy.pipeline)
    noise = torch.randn(1, 7, 3, generator=torch.Generator().manual_seed(0))

    def act(**changes: Any) -> Any:
        (chunk,) = load_policy(tmp_path, device="cpu", **changes).act_batch(seen[:1], noise=noise)
        return chunk.actions

    saved = act()
    assert np.array_equal(act(num_steps=4, solver="euler", dtype="float32"), saved)
    assert 0 < np.abs(act(solver="heun") - saved).max() < 0.5
    assert 0 < np.abs(act(num_steps=40) - saved).max() < 0.5
    assert 0 < np.abs(act(dtype=torch.bfloat16) - saved).max() < 0.5
    with pytest.raises(ConfigError, match="num_steps"):
        act(num_steps=0)
    with pytest.raises(ConfigError, match="no solver 'magic'"):
        act(solver="magic")
    with pytest.raises(ConfigError, match="device 'moon' cannot be used"):
        load_policy(tmp_path, device="moon")


def test_a_policys_cameras_are_renamed_and_left_out_when_it_is_loaded(
    policy: Policy, seen: list[Observation], tmp_path: Path
) -> None:
    write_policy(tmp_path, policy.model.state_dict(), policy.model.cfg, policy.pipeline)
    loaded = load_policy(tmp_path, device="cpu", rename={"eye": "front"}, without=["wrist"])
    chunk = loaded.act(replace(seen[0], images={"eye": seen[0].images["front"]}))
    assert chunk.actions.shape == (7, 3)
    with pytest.raises(ConfigError, match="has statistics of its own"):
        load_policy(tmp_path, stats="so100")
    write_policy(tmp_path, loaded.model.state_dict(), loaded.model.cfg, loaded.pipeline)
    assert load_policy(tmp_path, device="cpu").pipeline.robot_cameras == ("eye",)
