"""Learning from given actions what follows them: what counts, what is learned, and that it is kept."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import CONFIG, MODEL, fit, load, mean_loss
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from lerobot_folder import write_folder
from lerobot_reference import build_policy, save_policy
from released import write_released
from tailorbird.checkpoint.policy import read_policy, write_policy
from tailorbird.data.lerobot import LeRobotDataset
from tailorbird.errors import ConfigError
from tailorbird.infer.policy import load_policy
from tailorbird.model.flow import Guide
from tailorbird.model.init import initialise
from tailorbird.model.vla import VLA
from tailorbird.recipes.config import TuneConfig, smolvla
from tailorbird.recipes.finetune import finetune
from tailorbird.train.config import VLATrainConfig
from tailorbird.train.state import checkpoint_at, newest_checkpoint
from tailorbird.types import Batch, Inputs
from tailorbird.wire import Committed
from tiny import TINY_VLA, observed

DELAYED = replace(MODEL, max_delay=3)


class Spy(VLA):
    """Its velocity is what a test says, and it keeps the places and times that it was asked for."""

    said: Tensor | float = 0.0

    def forward(self, seen: Inputs, x_t: Tensor, t: Tensor) -> Tensor:
        self.x_t, self.t = x_t, t
        return x_t * 0 + self.said


@pytest.fixture
def batch(discs: Path) -> Batch:
    loader, _ = load(discs, discs.with_name("frames"))
    return loader.load(loader.rows[:22:2])


def test_given_actions_are_clean_their_time_is_zero_and_each_number_of_them_is_as_frequent(
    batch: Batch,
) -> None:
    spy, draws = Spy(DELAYED), 60
    mean_loss(spy, batch, draws, torch.Generator().manual_seed(5))
    given = spy.t == 0  # (B * R, L)
    assert torch.equal(given, given.cummin(1).values)  # only at the head
    shares = given.sum(1).bincount(minlength=5) / len(given)
    assert shares[:4].tolist() == pytest.approx([0.25] * 4, abs=0.06)
    assert shares[4] == 0
    actions = batch.actions.repeat_interleave(draws, dim=0)
    assert torch.equal(spy.x_t[given], actions[given])
    assert (spy.x_t - actions)[~given].abs().amax(-1).min() > 0
    rest = spy.t.masked_fill(given, 2).amin(1, keepdim=True).expand_as(spy.t)
    assert torch.equal(spy.t[~given], rest[~given])  # one time for all that is not given


def test_the_loss_ignores_what_was_given_and_counts_all_else(batch: Batch) -> None:
    spy = Spy(DELAYED)

    def loss(said: Tensor | float) -> float:
        spy.said = said
        return mean_loss(spy, batch, 1, torch.Generator().manual_seed(5)).item()

    before, given = loss(0.0), spy.t == 0
    assert loss(given[..., None] * 1e3) == before
    valid = batch.valid & ~given
    noise = torch.randn(batch.actions.shape, generator=torch.Generator().manual_seed(5))
    error = (noise - batch.actions).square().mean(-1)
    assert before == pytest.approx(error[valid].mean().item(), rel=1e-5)
    assert loss(~given[..., None] * 1.0) != before


def test_a_batch_of_which_nothing_is_left_to_learn_has_a_loss_of_zero(batch: Batch) -> None:
    ends = replace(batch, valid=torch.arange(4).expand(11, -1) < 0)
    loss = mean_loss(VLA(DELAYED), ends, 1, torch.Generator())
    loss.backward()
    assert loss.item() == 0


def test_without_a_delay_the_draws_are_those_that_they_were(batch: Batch) -> None:
    free, delayed = Spy(MODEL), Spy(DELAYED)
    for spy in (free, delayed):
        mean_loss(spy, batch, 2, torch.Generator().manual_seed(5))
    assert free.t.shape == (22,)
    kept = delayed.t[:, -1]
    assert torch.equal(kept, free.t)
    assert torch.equal(free.x_t[:, -1], delayed.x_t[:, -1])


def up_or_down(num: int) -> Batch:
    """The same scene, answered with all actions up or with all down: only what is given tells which."""
    seen, signs = observed(TINY_VLA, 1, 1), torch.tensor([1.0, -1.0] * (num // 2))[:, None, None]  # (B, 1, 1)
    told = Inputs(**{name: value.expand(num, *value.shape[1:]) for name, value in vars(seen).items()})
    return Batch(inputs=told, actions=signs.expand(num, 7, 3), valid=torch.ones(num, 7, dtype=torch.bool))


def learned(max_delay: int) -> VLA:
    expert = replace(TINY_VLA.expert, attention="self")
    model = VLA(replace(TINY_VLA, expert=expert, num_steps=6, max_delay=max_delay))
    initialise(model, 0)
    model.vlm.requires_grad_(False)
    draw, batch, steps, lr = torch.Generator().manual_seed(1), up_or_down(4), 200, 3e-2
    learning = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=lr, weight_decay=0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        optimizer.zero_grad()
        mean_loss(model, batch, 16, draw).backward()
        optimizer.step()
    return model


def test_a_chunk_goes_on_from_committed_actions_by_gradient_and_more_closely_if_it_learned_to() -> None:
    batch = up_or_down(64)
    guide = Guide(batch.actions, (torch.arange(7) < 3).float().expand(64, -1))
    noise = torch.randn(64, 7, 3, generator=torch.Generator().manual_seed(9))
    wrong: dict[tuple[int, bool], float] = {}
    for max_delay in (0, 4):
        model = learned(max_delay)
        with torch.inference_mode():
            prefix = model.encode(batch.inputs)
            for one in (None, guide):
                chunk = model.sample(prefix, noise, one)
                wrong[max_delay, one is guide] = (chunk - batch.actions)[:, 3:].abs().mean().item()
    assert min(wrong[0, False], wrong[4, False]) > 0.9  # left alone, up and down are as likely
    assert wrong[0, True] < 0.15  # by the gradient
    assert wrong[4, True] < 0.06 < wrong[0, True]  # by what was learned


def test_an_interrupted_run_continues_bit_for_bit(discs: Path, tmp_path: Path) -> None:
    cfg = replace(CONFIG, max_delay=3)
    fit(discs, tmp_path / "whole", cfg, model=DELAYED)
    with pytest.raises(ConfigError, match="now"):
        fit(discs, tmp_path / "part", cfg, model=DELAYED, at=11, act=stop)
    fit(discs, tmp_path / "part", cfg, model=DELAYED)
    one, other = (newest_checkpoint(tmp_path / name) for name in ("whole", "part"))
    assert one is not None
    assert other is not None
    for name in ("model.safetensors", "train.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    assert read_policy(one)[0].cfg.max_delay == 3
    with pytest.raises(ConfigError, match=r"model\.max_delay.*\(3, 2\)"):
        fit(discs, tmp_path / "part", model=replace(MODEL, max_delay=2))


def stop() -> None:
    raise ConfigError("now")


def test_a_model_that_expects_fewer_is_not_trained(discs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cfg\.max_delay=3 is more than the model's 0"):
        fit(discs, tmp_path, max_delay=3)
    assert not list(tmp_path.iterdir())


def test_a_policy_that_goes_on_learning_keeps_its_delay_or_gets_a_longer_one(
    discs: Path, tmp_path: Path
) -> None:
    fit(discs, tmp_path / "first", model=replace(MODEL, max_delay=2), steps=1)
    policy = checkpoint_at(tmp_path / "first", 1)
    for asked, expected in ((0, 2), (3, 3)):
        cfg = TuneConfig(train=replace(CONFIG, steps=1, max_delay=asked))
        trained = finetune(cfg, policy, discs, tmp_path / str(asked))
        assert read_policy(trained.checkpoint)[0].cfg.max_delay == expected
    cfg = TuneConfig(train=replace(CONFIG, steps=1, max_delay=4))
    with pytest.raises(ConfigError, match="nothing to learn of a chunk of 4"):
        finetune(cfg, policy, discs, tmp_path / "long")
    assert not list((tmp_path / "long").glob("*.json"))


def test_lerobots_layout_does_not_forget_that_a_policy_goes_on_from_given_actions(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "theirs")
    model, pipeline = read_policy(folder)
    with pytest.raises(
        ConfigError, match=r"lerobot cannot go on from given actions.*cfg\.max_delay=1.*own layout"
    ):
        write_policy(tmp_path, model.state_dict(), replace(model.cfg, max_delay=1), pipeline)


@pytest.mark.parity
def test_a_policy_of_lerobot_that_learns_to_go_on_from_given_actions_comes_out_in_our_layout(
    discs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_released(tmp_path / "vlm")
    stats = {f"so100.buffer.{key}": {"mean": torch.zeros(6), "std": torch.ones(6)} for key in ("action",)}
    base = save_policy(build_policy(tmp_path / "vlm", state=6, action=6), stats, tmp_path / "base")
    train = replace(CONFIG, steps=1, batch=3, max_delay=2)
    cfg = replace(smolvla(), train=train, rename={"front": "camera1"}, without=("camera2",))
    trained = finetune(cfg, base, discs, tmp_path / "run")
    assert "saved in Tailorbird's layout" in capsys.readouterr().out.replace("\n", " ")
    assert finetune(cfg, base, discs, tmp_path / "run").finished
    policy = load_policy(trained.checkpoint, device="cpu")
    assert (policy.model.cfg.max_delay, policy.pipeline.lerobot) == (2, None)
    seen = LeRobotDataset(discs).observe(3)
    given = policy.act(seen).actions + 1
    found = policy.act(replace(seen, committed=Committed(actions=given, frozen=2))).actions
    np.testing.assert_allclose(found[:2], given[:2], rtol=1e-4, atol=1e-4)


def test_a_delay_is_shorter_than_the_chunk_and_not_negative() -> None:
    with pytest.raises(ConfigError, match=r"max_delay=4 leaves nothing to learn of a chunk of 4"):
        replace(MODEL, max_delay=4)
    with pytest.raises(ConfigError, match="max_delay=-1 cannot be negative"):
        VLATrainConfig(max_delay=-1)
