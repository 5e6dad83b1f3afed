"""What is replayed is, bit for bit, what would have been computed."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lerobot_folder import write_folder
from tailorbird.infer.graphs import KEPT, Replayed, ReplayedVLA
from tailorbird.infer.policy import load_policy
from tailorbird.model.vla import VLA
from tailorbird.types import Inputs
from tiny import VARIANTS, new_model, observed

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
    for batch, cameras, words in ((1, 2, 4), (3, 2, 6), (1, 2, 4), (1, 1, 4)):
        seen = observed(model.cfg, batch, cameras, words)
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


def test_it_is_an_engine_of_a_policy(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "it")
    assert isinstance(load_policy(folder, device="cpu", engine="graphs").model, ReplayedVLA)
