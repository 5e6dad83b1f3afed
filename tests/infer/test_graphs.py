"""What is replayed is, bit for bit, what would have been computed."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lerobot_folder import write_folder
from tailorbird.errors import ConfigError
from tailorbird.infer.graphs import KEPT, WORDS, Replayed, ReplayedVLA
from tailorbird.infer.policy import load_policy
from tailorbird.model.vla import VLA
from tailorbird.types import Inputs
from tiny import VARIANTS, act, new_model, observed

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")],
    ),
]


def on(model: VLA, seen: Inputs, device: str) -> Tensor:
    noise = torch.randn(len(seen.ids), model.cfg.chunk, model.cfg.action_dim, generator=torch.Generator())
    with torch.inference_mode():
        return model.sample(model.encode(seen.to(torch.device(device))), noise.to(device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_replayed_policy_acts_bit_for_bit_as_it_did_whatever_it_saw_in_between(
    name: str, device: str
) -> None:
    model = new_model(VARIANTS[name]).to(device)
    replayed = ReplayedVLA(model)
    for batch, cameras in ((1, 2), (3, 2), (1, 2), (1, 1)):
        seen = observed(model.cfg, batch, cameras, WORDS)
        assert torch.equal(on(replayed, seen, device), on(model, seen, device))


def test_a_prefix_outlives_the_next_observation() -> None:
    replayed = ReplayedVLA(new_model())
    first, second = (observed(replayed.cfg, 1, 2, words) for words in (4, 4))
    noise = torch.zeros(1, replayed.cfg.chunk, replayed.cfg.action_dim)
    with torch.inference_mode():
        prefix = replayed.encode(first)
        before = replayed.sample(prefix, noise)
        replayed.encode(
            Inputs(pixels=-second.pixels, ids=second.ids, ids_valid=second.ids_valid, state=second.state)
        )
        assert torch.equal(replayed.sample(prefix, noise), before)


def test_recordings_that_were_not_used_for_long_are_given_up() -> None:
    called: list[int] = []

    def double(x: Tensor) -> tuple[Tensor, ...]:
        called.append(len(x))
        return (2 * x,)

    replayed = Replayed(double)
    for length in [*range(1, KEPT + 2), KEPT + 1, 1]:
        (found,) = replayed(torch.full((length,), 3.0))
        assert torch.equal(found, torch.full((length,), 6.0))
    assert called.count(1) == 4  # recorded, called, recorded again, called


def test_threads_that_act_at_once_do_not_mix_their_observations() -> None:
    replayed = ReplayedVLA(new_model())
    scenes = [observed(replayed.cfg, 1, 2, words=3 + i) for i in range(6)]
    alone = [act(replayed, seen) for seen in scenes]
    with ThreadPoolExecutor(len(scenes)) as pool:
        for _ in range(3):
            together = list(pool.map(lambda seen: act(replayed, seen), scenes))
            assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_instructions_of_many_lengths_share_a_recording() -> None:
    model = new_model()
    replayed = ReplayedVLA(model)
    for words in (3, 9, 16):
        seen = observed(model.cfg, 1, 2, words)
        torch.testing.assert_close(act(replayed, seen), act(model, seen), rtol=1e-5, atol=1e-6)
    assert len(replayed._look._recordings) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to record")
def test_without_a_gpu_there_is_nothing_to_record(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the engine graphs records what a GPU does"):
        load_policy(write_folder(tmp_path / "it"), engine="graphs")
