"""Low-rank updates: nothing at first, only they learn, and merged they are plain weights."""

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from small import CONFIG, fit, load, new_model, teach
from torch import Tensor, nn

from tailorbird.checkpoint.policy import read_policy
from tailorbird.errors import ConfigError, TailorbirdError
from tailorbird.model.vla import VLA
from tailorbird.train.config import SMALL_TARGETS, LearnConfig, LoraConfig
from tailorbird.train.lora import Adapted, adapt, adapter_of, attach, merge, merged_weights, unmerge
from tailorbird.train.network import build_network
from tailorbird.train.stages import choose, count
from tailorbird.train.state import checkpoint_at, newest_checkpoint
from tailorbird.types import Batch

M = TypeVar("M", bound=nn.Module)
LORA = LoraConfig(rank=3, alpha=5.0)
BOTH = pytest.mark.parametrize("cfg", [LORA, replace(LORA, dora=True)], ids=["LoRA", "DoRA"])
OWN = (".up", ".down", ".magnitude")


@pytest.fixture
def batch(discs: Path) -> Batch:
    loader, _ = load(discs, discs.with_name("frames"))
    return loader.load(loader.rows[:5])


def adapted(cfg: LoraConfig = LORA, **learn: str) -> VLA:
    model = new_model()
    choose(model, LearnConfig(lora=cfg, **learn), seed=4)  # type: ignore[arg-type]
    return model.eval()


def shaken(model: M) -> M:
    """As after some steps: updates are zero at first."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith(OWN):
            change = 0.3 * torch.randn(parameter.shape, generator=generator)
            parameter.data = change + (parameter if name.endswith(".magnitude") else 0)
    return model


@torch.no_grad()
def velocity(model: VLA, batch: Batch) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    x_t = torch.randn(batch.actions.shape, generator=generator)
    return model(batch.inputs, x_t, torch.linspace(0.1, 0.9, len(x_t)))


@BOTH
def test_a_model_with_new_updates_computes_what_it_did(batch: Batch, cfg: LoraConfig) -> None:
    assert torch.equal(velocity(adapted(cfg), batch), velocity(new_model(), batch))


@BOTH
def test_merged_weights_compute_the_same_to_1e_6_in_a_model_without_updates(
    batch: Batch, cfg: LoraConfig
) -> None:
    model, plain = shaken(adapted(cfg)), new_model()
    plain.load_state_dict(merged_weights(model))
    assert (velocity(model, batch) - velocity(new_model(), batch)).abs().max() > 0.01
    torch.testing.assert_close(velocity(plain, batch), velocity(model, batch), rtol=1e-6, atol=1e-6)


@BOTH
def test_merging_is_undone_bit_for_bit(batch: Batch, cfg: LoraConfig) -> None:
    model = shaken(adapted(cfg))
    before, expected = (
        {name: value.clone() for name, value in model.state_dict().items()},
        velocity(model, batch),
    )
    taken = merge(model)
    assert model.state_dict().keys() == new_model().state_dict().keys()
    torch.testing.assert_close(velocity(model, batch), expected, rtol=1e-5, atol=1e-5)
    model.train()
    unmerge(model, taken)
    assert all(module.training for module in model.modules())
    model.eval()
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(velocity(model, batch), expected)


@BOTH
def test_an_adapter_can_be_taken_off_one_model_and_put_on_another(batch: Batch, cfg: LoraConfig) -> None:
    model, other = shaken(adapted(replace(cfg, whole=("state_in",), targets=("time_in",)))), new_model()
    with torch.no_grad():
        model.state_in.weight.mul_(2)
    learned = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    adapter = adapter_of(model, learned)
    assert adapter is not None
    assert adapter.whole.keys() == {"state_in.weight", "state_in.bias"}
    attach(other, adapter)
    assert torch.equal(velocity(other, batch), velocity(model, batch))
    assert [name for name, parameter in other.named_parameters() if parameter.requires_grad] == learned
    with pytest.raises(ConfigError, match="merge them first"):
        attach(other, adapter)
    assert adapter_of(new_model(), ()) is None


def test_a_row_of_dora_is_as_long_as_it_learns_and_its_length_has_no_gradient_elsewhere() -> None:
    model = nn.Sequential(nn.Linear(4, 6))
    nn.init.normal_(model[0].weight, generator=torch.Generator().manual_seed(5))
    adapt(model, LoraConfig(rank=2, alpha=6.0, dora=True, targets=("0",)), seed=0)
    shaken(model)
    one, x = model[0], torch.randn(5, 4, generator=torch.Generator().manual_seed(3))
    assert isinstance(one, Adapted)
    assert one.magnitude is not None
    torch.testing.assert_close(one.merged().norm(dim=1), one.magnitude.detach().abs())
    weight = one.weight + 3.0 * one.up @ one.down[0]
    expected = x @ (one.magnitude / weight.norm(dim=1).detach() * weight.T) + one.bias
    torch.testing.assert_close(one(x), expected)
    learned = (one.up, one.down, one.magnitude)
    found = torch.autograd.grad(one(x).square().sum(), learned)
    torch.testing.assert_close(found, torch.autograd.grad(expected.square().sum(), learned))


def test_a_row_of_zeros_stays_one_with_dora() -> None:
    model = nn.Sequential(nn.Linear(4, 6))
    nn.init.zeros_(model[0].weight[2])
    adapt(model, LoraConfig(rank=2, dora=True, targets=("0",)), seed=0)
    y = model(torch.ones(1, 4))
    y.sum().backward()
    assert y[0, 2] == model[0].bias[2]
    assert all(one.grad.isfinite().all() for one in model.parameters() if one.requires_grad)


def test_what_learns_whole_learns_beside_the_updates_and_is_not_halved() -> None:
    model = adapted(replace(LORA, whole=("vlm.connector.*", "vlm.*.norm_1")))
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    whole = {name for name in learns if not name.endswith(OWN)}
    assert "vlm.connector.proj.weight" in whole
    assert whole == {
        name
        for name, _ in model.named_parameters()
        if "connector" in name or ("vlm" in name and "norm_1" in name)
    }
    with pytest.raises(ConfigError, match=r"--learn\.frozen-dtype float32, and --train\.precision bfloat16"):
        LearnConfig(lora=replace(LORA, whole=("vlm.connector.*",)), frozen_dtype="bfloat16")
    with pytest.raises(ConfigError, match="time_in would learn whole and get a low-rank update"):
        adapted(replace(LORA, whole=("time_in",)))
    with pytest.raises(ConfigError, match=r"'nothing' .* names no module; some that there are: .*action_in"):
        adapted(replace(LORA, whole=("nothing",)))


def test_queries_of_the_image_tower_have_a_name_too() -> None:
    model = adapted(replace(LORA, targets=("vlm.vision.*.query", "vlm.vision.*.value")))
    before, after = new_model().state_dict(), merged_weights(shaken(model))
    moved = (
        before["vlm.vision.blocks.0.attn.qkv.weight"] != after["vlm.vision.blocks.0.attn.qkv.weight"]
    ).any(1)
    third = len(moved) // 3
    assert moved.tolist() == [True] * third + [False] * third + [True] * third


def test_updates_are_fp32_in_a_network_that_computes_in_bf16() -> None:
    model = new_model()
    groups = choose(model, LearnConfig(lora=replace(LORA, dora=True)), 4)
    network = build_network(model, groups, replace(CONFIG, precision="bfloat16"))
    kinds = {name.endswith(OWN): value.dtype for name, value in network.expert.named_parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}


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


def test_settings_of_updates_without_updates_are_refused() -> None:
    for asked in (LoraConfig(rank=1, dora=True), LoraConfig(rank=1, whole=("time_in",))):
        with pytest.raises(ConfigError, match="there are none: set their rank"):
            replace(asked, rank=0)


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
def test_a_run_with_updates_continues_exactly_and_saves_a_policy_without_them(
    discs: Path, tmp_path: Path, dora: bool
) -> None:
    dropping = LoraConfig(rank=3, dropout=0.3, dora=dora)

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
    model = new_model()
    groups = choose(model, LearnConfig(lora=cfg), 4)
    assert count(model, groups)["learned_parameters"] < 2000
    teach(CONFIG, model, loader, run, groups=groups)
