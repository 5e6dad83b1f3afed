"""Low-rank updates: nothing at first, only they learn, and merged they are plain weights."""

from pathlib import Path

import pytest
import torch
from small import CONFIG, fit, load, new_model
from torch import Tensor, nn

from tailorbird.checkpoint.policy import read_policy
from tailorbird.errors import ConfigError, TailorbirdError
from tailorbird.model.vla import VLA
from tailorbird.train.config import SMALL_TARGETS, LearnConfig, LoraConfig
from tailorbird.train.learn import choose, count
from tailorbird.train.loop import train
from tailorbird.train.lora import Adapted, adapt, merged_weights
from tailorbird.train.state import checkpoint_at, newest_checkpoint
from tailorbird.types import Batch

LORA = LoraConfig(rank=3, alpha=5.0)


@pytest.fixture
def batch(discs: Path) -> Batch:
    loader, _ = load(discs, discs.with_name("frames"))
    return loader.load(loader.rows[:5])


def adapted(cfg: LoraConfig = LORA, **learn: str) -> VLA:
    model = new_model()
    choose(model, LearnConfig(lora=cfg, **learn), seed=4)  # type: ignore[arg-type]
    return model.eval()


def shaken(model: VLA) -> VLA:
    """As after some steps: updates are zero at first."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith((".up", ".down")):
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


@torch.no_grad()
def velocity(model: VLA, batch: Batch) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    x_t = torch.randn(batch.actions.shape, generator=generator)
    return model(batch.inputs, x_t, torch.linspace(0.1, 0.9, len(x_t)))


def test_a_model_with_new_updates_computes_what_it_did(batch: Batch) -> None:
    assert torch.equal(velocity(adapted(), batch), velocity(new_model(), batch))


def test_merged_weights_compute_the_same_to_1e_6_in_a_model_without_updates(batch: Batch) -> None:
    model, plain = shaken(adapted()), new_model()
    plain.load_state_dict(merged_weights(model))
    assert (velocity(model, batch) - velocity(new_model(), batch)).abs().max() > 0.01
    torch.testing.assert_close(velocity(plain, batch), velocity(model, batch), rtol=1e-6, atol=1e-6)


def test_the_rows_of_keys_stay_and_those_of_queries_and_values_move() -> None:
    before, after = new_model().state_dict(), merged_weights(shaken(adapted()))
    name, (query, key, value) = "expert.blocks.0.attn.qkv.weight", (32, 16, 16)
    moved = (before[name] != after[name]).any(dim=1)
    assert moved.tolist() == [True] * query + [False] * key + [True] * value


def test_by_default_what_lerobot_adapts_is_adapted_and_nothing_else_learns() -> None:
    model = adapted()
    layers = {name for name, module in model.named_modules() if isinstance(module, Adapted)}
    cross = {"expert.blocks.1.attn.query", "expert.blocks.1.attn.value"}
    assert layers == {"expert.blocks.0.attn.qkv", *cross, *SMALL_TARGETS}
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learns == {f"{layer}.{part}" for layer in layers for part in ("up", "down")}


def test_an_update_is_alpha_over_rank_times_its_two_factors() -> None:
    layer = nn.Linear(4, 6)
    model = nn.Sequential(layer)
    adapt(model, LoraConfig(rank=2, alpha=6.0, targets=("0",)), seed=0)
    one = model[0]
    assert isinstance(one, Adapted)
    nn.init.ones_(one.up)
    expected = layer.weight + 3.0 * torch.ones(6, 2) @ one.down[0]
    torch.testing.assert_close(one.merged(), expected)
    x = torch.randn(5, 4)
    torch.testing.assert_close(one(x), x @ expected.T + layer.bias)
    assert one.down.abs().max() <= 0.5  # 1 / sqrt(inputs)


def test_dropout_changes_what_is_learned_from_and_not_what_acts(batch: Batch) -> None:
    plain, model = shaken(adapted()), shaken(adapted(LoraConfig(rank=3, alpha=5.0, dropout=0.5)))
    assert torch.equal(velocity(model, batch), velocity(plain, batch))
    assert not torch.equal(velocity(model.train(), batch), velocity(plain, batch))


def test_frozen_weights_may_be_bf16_while_the_updates_are_fp32(batch: Batch) -> None:
    wide, narrow = adapted(), adapted(frozen_dtype="bfloat16")
    kinds = {
        (name.endswith((".up", ".down")), parameter.dtype)
        for name, parameter in narrow.vlm.named_parameters()
    }
    assert kinds == {(False, torch.bfloat16)}
    learned = {parameter.dtype for parameter in narrow.parameters() if parameter.requires_grad}
    assert learned == {torch.float32}
    ours, theirs = velocity(shaken(narrow), batch), velocity(shaken(wide), batch)
    assert (ours - theirs).norm() < 0.05 * theirs.norm()


def test_a_target_that_is_not_there_is_named_with_some_that_are() -> None:
    with pytest.raises(ConfigError, match=r"'expert\.\*\.gates'.* names no layer; .*action_in"):
        adapt(new_model(), LoraConfig(rank=2, targets=("expert.*.gates",)), seed=0)


@pytest.mark.parametrize("wrong", [{"rank": -1}, {"alpha": 0.0}, {"dropout": 1.0}])
def test_settings_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"rank cannot be negative"):
        LoraConfig(**wrong)  # type: ignore[arg-type]


def test_a_run_with_updates_continues_exactly_and_saves_a_policy_without_them(
    discs: Path, tmp_path: Path
) -> None:
    dropping = LoraConfig(rank=3, dropout=0.3)

    def stop() -> None:
        raise TailorbirdError("here")

    whole, run = tmp_path / "whole", tmp_path / "run"
    run_updates(discs, whole, dropping)
    with pytest.raises(TailorbirdError, match="here"):
        run_updates(discs, run, dropping, at=8, act=stop)
    assert newest_checkpoint(run) == checkpoint_at(run, 5)
    run_updates(discs, run, dropping)
    for name in ("model.safetensors", "train.safetensors"):
        assert (checkpoint_at(run, 12) / name).read_bytes() == (checkpoint_at(whole, 12) / name).read_bytes()
    model, _ = read_policy(checkpoint_at(run, 12))
    assert model.state_dict().keys() == new_model().state_dict().keys()
    before = new_model().state_dict()["time_in.weight"]
    assert not torch.equal(model.state_dict()["time_in.weight"], before)


def test_other_updates_than_those_of_the_run_are_refused(discs: Path, tmp_path: Path) -> None:
    run_updates(discs, tmp_path, LORA)
    with pytest.raises(
        TailorbirdError, match=r"down has shape \(2, 3, .*the model needs \(2, 2, .*another --out"
    ):
        run_updates(discs, tmp_path, LoraConfig(rank=2))
    with pytest.raises(TailorbirdError, match=r"tensors that do not learn now"):
        fit(discs, tmp_path)


def run_updates(discs: Path, run: Path, cfg: LoraConfig, **interrupt: object) -> None:
    loader, _ = load(discs, discs.with_name("frames"))
    for name, value in interrupt.items():
        setattr(loader, {"at": "step"}.get(name, name), value)
    model = adapted(cfg)
    assert count(model)["learned_parameters"] < 2000
    train(CONFIG, model, loader, loader.pipeline, run, lambda mean: {})
