"""Which weights learn, in which precision, and that the others cost nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import CONFIG, MODEL, load, mean_loss, new_model, teach

from tailorbird.errors import ConfigError
from tailorbird.model.vla import VLA
from tailorbird.train.config import Learn, LearnConfig, LoraConfig
from tailorbird.train.log import read_metrics
from tailorbird.train.optim import build_optimizer, start_average
from tailorbird.train.stages import choose, count
from tailorbird.train.state import checkpoint_at

FROZEN: dict[Learn, tuple[str, ...]] = {
    "expert": ("vlm.",),
    "all_but_vision": ("vlm.vision.", "vlm.head."),
    "everything": ("vlm.head.",),
}


def untied() -> VLA:
    """With a head, which acting does not read."""
    decoder = replace(MODEL.vlm.decoder, tied=False)
    return VLA(replace(MODEL, vlm=replace(MODEL.vlm, decoder=decoder)))


@pytest.mark.parametrize("part", FROZEN)
def test_what_is_frozen_needs_no_gradient_and_has_no_place_in_the_optimizer(part: Learn) -> None:
    model = untied()
    groups = choose(model, LearnConfig(part=part), 0)
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learns == {name for name, _ in model.named_parameters() if not name.startswith(FROZEN[part])}
    held = sum(len(group["params"]) for group in build_optimizer(groups, CONFIG).param_groups)
    assert held == len(learns)
    numbers = count(model, groups)
    assert sum(numbers.values()) == sum(p.numel() for p in model.parameters())


def test_what_learns_is_fp32_whatever_it_was_and_the_frozen_part_may_stay_bf16() -> None:
    for part in FROZEN:
        model = new_model().to(torch.bfloat16)
        choose(model, LearnConfig(part=part), 0)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    model, before = new_model(), new_model().state_dict()
    choose(model, LearnConfig(part="expert", frozen_dtype="bfloat16"), 0)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16)
        torch.testing.assert_close(parameter.float(), before[name], rtol=2**-8, atol=0)


def test_a_vlm_of_which_parts_learn_is_not_halved() -> None:
    with pytest.raises(ConfigError, match=r"cannot be bfloat16: .*--learn\.frozen-dtype float32"):
        LearnConfig(part="all_but_vision", frozen_dtype="bfloat16")
    LearnConfig(lora=LoraConfig(rank=1), frozen_dtype="bfloat16")


def test_averaged_weights_share_what_is_frozen() -> None:
    model = new_model()
    groups = choose(model, LearnConfig(part="expert"), 0)
    pairs = zip(model.named_parameters(), start_average(model, groups).parameters(), strict=True)
    for (name, parameter), mean in pairs:
        assert (mean is parameter) == name.startswith("vlm."), name
        assert not mean.requires_grad


def test_a_checkpoint_holds_the_whole_policy_and_of_the_rest_only_what_learns(
    discs: Path, tmp_path: Path
) -> None:
    loader, _ = load(discs, discs.with_name("frames"))
    model, before = new_model(), new_model().state_dict()
    groups = choose(model, LearnConfig(part="expert"), 0)
    teach(replace(CONFIG, steps=2), model, loader, tmp_path, groups=groups)
    folder = checkpoint_at(tmp_path, 2)
    policy, rest = (load_file(folder / f"{name}.safetensors") for name in ("model", "train"))
    assert policy.keys() == before.keys()
    assert not any(".vlm." in name for name in rest)
    for name, value in policy.items():
        assert torch.equal(value, before[name]) == name.startswith("vlm."), name


def test_the_log_begins_with_how_much_learns_and_says_it_once(discs: Path, tmp_path: Path) -> None:
    for steps in (2, 2):
        loader, _ = load(discs, discs.with_name("frames"))
        model = new_model()
        groups = choose(model, LearnConfig(part="expert"), 0)
        teach(replace(CONFIG, steps=steps), model, loader, tmp_path, groups=groups)
    lines = [row for row in read_metrics(tmp_path) if "learned_parameters" in row]
    assert lines == [{"step": 0, **count(model, groups)}]
    assert read_metrics(tmp_path)[0] == lines[0]


def test_actions_past_the_end_are_left_out_or_held_as_asked(discs: Path, tmp_path: Path) -> None:
    rows = {}
    for kind in ("left_out", "held"):
        loader, _ = load(discs, discs.with_name("frames"))
        cfg = replace(CONFIG, steps=1, log_every=1, past_end=kind)  # type: ignore[arg-type]
        teach(cfg, new_model(), loader, tmp_path / kind)
        rows[kind] = read_metrics(tmp_path / kind)[1]["loss"]
    assert rows["left_out"] != rows["held"]


def test_the_state_read_after_a_frozen_scene_gives_the_same_loss_and_gradients(discs: Path) -> None:
    loader, _ = load(discs, discs.with_name("frames"))
    batch = loader.load(loader.rows[:5])
    whole, frozen = new_model(), new_model()
    choose(frozen, LearnConfig(part="expert"), 0)
    losses = [mean_loss(model, batch, 2, torch.Generator().manual_seed(0)) for model in (whole, frozen)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)
    for loss in losses:
        loss.backward()
    for (name, ours), theirs in zip(frozen.named_parameters(), whole.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=name)
