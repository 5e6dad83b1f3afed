"""What computes a step instead of the model itself: recomputed, narrow, compiled."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import CONFIG as POLICY
from small import load, new_model, teach
from tiny_vlm import CONFIG, Counting, lesson_of, new_vlm, pack, teach_vlm
from torch import Tensor

from tailorbird.checkpoint.vlm import read_vlm
from tailorbird.model.vlm import VLM
from tailorbird.train.config import LearnConfig, LoraConfig, Pace, VLMTrainConfig
from tailorbird.train.network import build_network
from tailorbird.train.stages import choose
from tailorbird.train.state import checkpoint_at, start_state
from tailorbird.train.update import update

LORA = LearnConfig(lora=LoraConfig(rank=2, targets=("decoder.blocks.*.mlp.up",)), frozen_dtype="bfloat16")
LORA_FP32 = replace(LORA, frozen_dtype="float32")


def first_gradients(cfg: VLMTrainConfig, learn: LearnConfig = LearnConfig()) -> dict[str, Tensor]:  # noqa: B008
    """Of the fp32 weights, before the optimizer takes them."""
    model = new_vlm()
    state = start_state(model, choose(model, learn, 0), cfg)
    lesson, seen = lesson_of(cfg, Counting()), {}

    def keep(*_: object) -> None:
        seen.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    state.optimizer.register_step_pre_hook(keep)
    update(state, next(iter(lesson.steps(0, 1))), lesson, cfg)
    return seen


@pytest.mark.parametrize("learn", [LearnConfig(), LearnConfig(vision=Pace(learns=False))])
def test_recomputed_blocks_have_the_same_gradients(learn: LearnConfig) -> None:
    plain, again = (first_gradients(replace(CONFIG, checkpointing=on), learn) for on in (False, True))
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        assert torch.equal(gradient, again[name]), name


def test_recomputed_blocks_keep_less() -> None:
    kept = []
    for on in (False, True):
        model = new_vlm().train()
        network = build_network(model, choose(model, LearnConfig(), 0), replace(CONFIG, checkpointing=on))
        sizes: dict[int, int] = {}

        def count(value: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[value.data_ptr()] = value.nbytes
            return value

        rows = pack([[3, 4]])
        with torch.autograd.graph.saved_tensors_hooks(count, lambda value: value):
            network(rows.ids, rows.pixels, rows.positions)
        weights = {one.data_ptr() for one in model.parameters()}
        kept.append(sum(size for place, size in sizes.items() if place not in weights))
    assert kept[1] < 0.5 * kept[0]


def test_a_policy_learns_the_same_with_recomputed_blocks(discs: Path, tmp_path: Path) -> None:
    for on in (False, True):
        loader, _ = load(discs, discs.with_name("frames"))
        cfg = replace(POLICY, steps=2, checkpointing=on)
        teach(cfg, new_model(), loader, tmp_path / str(on))
    plain, again = (checkpoint_at(tmp_path / str(on), 2) / "train.safetensors" for on in (False, True))
    assert plain.read_bytes() == again.read_bytes()


def test_a_narrow_network_computes_and_the_fp32_weights_learn() -> None:
    cfg = replace(CONFIG, precision="bfloat16", lr=1e-5, ema=0.0, warmup=0)
    model = new_vlm()
    state = start_state(model, choose(model, LearnConfig(), 0), cfg)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lesson = lesson_of(cfg, Counting())
    update(state, next(iter(lesson.steps(0, 1))), lesson, cfg)
    lost = 0
    for (name, weight), own in zip(model.named_parameters(), state.network.parameters(), strict=True):
        assert (weight.dtype, own.dtype, own.grad) == (torch.float32, torch.bfloat16, None)
        assert torch.equal(own, weight.bfloat16()), name
        lost += int(((weight != before[name]) & (own == before[name].bfloat16())).sum())
    assert lost > 1000  # steps that bf16 cannot hold are not forgotten


def test_narrow_gradients_are_those_of_fp32_to_their_precision_and_add_up_in_fp32() -> None:
    wide, narrow = first_gradients(CONFIG), first_gradients(replace(CONFIG, precision="bfloat16"))
    assert wide.keys() == narrow.keys()
    flat = [torch.cat([one[name].flatten() for name in wide]) for one in (wide, narrow)]
    assert (flat[0] - flat[1]).norm() < 0.05 * flat[0].norm()
    assert {one.dtype for one in narrow.values()} == {torch.float32}


def test_a_narrow_network_shares_what_never_learns_and_is_narrow_already() -> None:
    model = new_vlm()
    groups = choose(model, LORA, 0)
    network = build_network(model, groups, replace(CONFIG, precision="bfloat16"))
    assert isinstance(network, VLM)
    assert network.decoder.embed.weight is model.decoder.embed.weight
    learned = {name for group in groups for name in group.weights}
    for name, one in network.named_parameters():
        assert one.dtype == (torch.float32 if name in learned else torch.bfloat16), name
        assert (one is dict(model.named_parameters())[name]) == (name not in learned)


def test_a_narrow_policy_is_fp32_where_its_release_is(discs: Path, tmp_path: Path) -> None:
    loader, _ = load(discs, discs.with_name("frames"))
    model = new_model()
    groups = choose(model, LearnConfig(), 0)
    network = build_network(model, groups, replace(POLICY, precision="bfloat16"))
    assert network.action_out.weight.dtype == torch.float32
    assert network.vlm.decoder.embed.weight.dtype == torch.bfloat16
    cfg = replace(POLICY, steps=2, precision="bfloat16")
    assert teach(cfg, new_model(), loader, tmp_path).finished


def test_what_a_narrow_network_learned_is_saved_in_fp32(tmp_path: Path) -> None:
    trained = teach_vlm(tmp_path, replace(CONFIG, steps=2, precision="bfloat16", ema=0.0))
    saved = read_vlm(trained.checkpoint).model
    assert saved.decoder.embed.weight.dtype == torch.float32
    weight = saved.decoder.blocks[0].get_parameter("mlp.up.weight")
    assert not torch.equal(weight, weight.bfloat16().float())


@pytest.mark.full  # a minute
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of torch, about itself
def test_compiled_blocks_compute_the_same() -> None:
    torch._dynamo.reset()
    plain = first_gradients(CONFIG, LORA_FP32)
    compiled = first_gradients(replace(CONFIG, compile=True, checkpointing=True), LORA_FP32)
    for name, gradient in plain.items():
        torch.testing.assert_close(compiled[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
