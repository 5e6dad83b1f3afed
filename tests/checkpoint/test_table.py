"""Rename tables on small tensors of distinct sizes."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tailorbird.checkpoint.smolvla import vla_rules
from tailorbird.checkpoint.smolvlm import vlm_rules
from tailorbird.checkpoint.table import Rule, affine, convert, drop, each, inside, revert, same, stack
from tailorbird.errors import CheckpointError, ConfigError
from tailorbird.model.build import build_model
from tailorbird.model.config import DecoderConfig, ExpertConfig, VisionConfig, VLAConfig, VLMConfig

QKV = stack("q", "k", "v", ours="qkv", rows=(5, 3, 2))
VLM_CFG = VLMConfig(
    vision=VisionConfig(image_size=12, patch_size=3, width=10, num_layers=2, num_heads=2, mlp_dim=11),
    decoder=DecoderConfig(
        width=14, num_layers=4, num_heads=6, num_kv_heads=3, head_dim=4, mlp_dim=13, vocab=17
    ),
    shuffle=2,
    image_token_id=9,
)


def rows(*counts: int) -> list[Tensor]:
    """Tensors of width 4 that differ in every value."""
    return list(torch.arange(4.0 * sum(counts)).view(-1, 4).split(counts))


def test_a_stack_keeps_the_order_of_its_rule_and_comes_apart_at_the_same_rows() -> None:
    q, k, v = rows(5, 3, 2)
    ours = convert({"v": v, "q": q, "k": k}, [QKV])
    assert ours.keys() == {"qkv"}
    assert torch.equal(ours["qkv"], torch.cat([q, k, v]))
    back = revert(ours, [QKV])
    assert list(back) == ["q", "k", "v"]
    assert all(torch.equal(back[key], value) for key, value in {"q": q, "k": k, "v": v}.items())


def test_a_tensor_of_its_own_is_renamed_and_not_copied() -> None:
    (weight,) = rows(3)
    ours = convert({"theirs": weight}, [same("theirs", "ours")])
    assert ours["ours"] is weight
    assert revert(ours, [same("theirs", "ours")])["theirs"] is weight


def test_a_star_is_written_out_for_each_layer_on_both_sides() -> None:
    rules = each((0, 10), inside(affine("fc", "up"), "layers.*.", "blocks.*."))
    theirs = {
        f"layers.{layer}.fc.{part}": torch.tensor([layer]) for layer in (10, 0) for part in ("weight", "bias")
    }
    ours = convert(theirs, rules)
    assert list(ours) == [
        "blocks.0.up.weight",
        "blocks.0.up.bias",
        "blocks.10.up.weight",
        "blocks.10.up.bias",
    ]
    assert ours["blocks.10.up.bias"] == 10
    assert ours["blocks.0.up.bias"] == 0


def test_a_prefix_reaches_the_key_that_a_dropped_one_repeats() -> None:
    rules = inside([same("embed", "table"), drop("head", why="tied", repeats="embed")], "a.", "b.")
    (embed,) = rows(3)
    assert convert({"a.embed": embed, "a.head": embed.clone()}, rules).keys() == {"b.table"}


def test_a_missing_key_is_named_even_if_the_other_parts_of_its_stack_are_there() -> None:
    q, _, v = rows(5, 3, 2)
    with pytest.raises(CheckpointError, match=r"checkpoint lacks 1 tensors .*\['k'\]"):
        convert({"q": q, "v": v}, [QKV])


def test_a_key_without_a_rule_is_named() -> None:
    q, k, v = rows(5, 3, 2)
    with pytest.raises(CheckpointError, match=r"has 1 in no rule \['rotary'\]"):
        convert({"q": q, "k": k, "v": v, "rotary": q}, [QKV])


def test_a_name_of_ours_without_a_rule_is_named() -> None:
    (weight,) = rows(3)
    with pytest.raises(CheckpointError, match=r"model lacks 0 .* has 1 in no rule \['stem'\]"):
        revert({"ours": weight, "stem": weight}, [same("theirs", "ours")])


@pytest.mark.parametrize(
    ("second", "name"),
    [(same("q", "query"), "q"), (same("other", "qkv"), "qkv"), (drop("v", why="not read"), "v")],
)
def test_a_name_in_two_rules_is_refused_in_both_directions(second: Rule, name: str) -> None:
    q, k, v = rows(5, 3, 2)
    with pytest.raises(CheckpointError, match=rf"two rules of the table, first: \['{name}'\]"):
        convert({"q": q, "k": k, "v": v, "other": v}, [QKV, second])
    with pytest.raises(CheckpointError, match=rf"two rules of the table, first: \['{name}'\]"):
        revert({"qkv": torch.cat([q, k, v])}, [QKV, second])


def test_parts_of_a_stack_with_other_rows_are_refused_even_if_their_sum_fits() -> None:
    k, q, v = rows(3, 5, 2)
    with pytest.raises(CheckpointError, match=r"\(3, 5, 2\) rows, qkv is made of \(5, 3, 2\)"):
        convert({"q": k, "k": q, "v": v}, [QKV])


def test_a_stack_with_other_rows_does_not_come_apart() -> None:
    with pytest.raises(CheckpointError, match="qkv has 11 rows"):
        revert({"qkv": torch.zeros(11, 4)}, [QKV])


def test_a_stack_without_one_row_count_per_part_is_a_mistake_in_the_table() -> None:
    with pytest.raises(ConfigError, match=r"'qkv' is made of \('q', 'k', 'v'\)"):
        stack("q", "k", "v", ours="qkv", rows=(5, 5))


def test_a_dropped_key_may_be_there_or_not_and_does_not_come_back() -> None:
    rules = [same("theirs", "ours"), drop("inv_freq", why="made from the configuration")]
    (weight,) = rows(3)
    assert convert({"theirs": weight}, rules).keys() == {"ours"}
    assert convert({"theirs": weight, "inv_freq": weight}, rules).keys() == {"ours"}
    assert revert({"ours": weight}, rules).keys() == {"theirs"}


def test_a_dropped_copy_that_differs_from_what_it_should_repeat_is_refused() -> None:
    rules = [same("embed", "table"), drop("head", why="tied to the embedding", repeats="embed")]
    (embed,) = rows(3)
    with pytest.raises(CheckpointError, match=r"head differs from embed.*tied to the embedding"):
        convert({"embed": embed, "head": embed + 1}, rules)
    with pytest.raises(CheckpointError, match="head differs from embed"):
        convert({"embed": embed, "head": embed[:2]}, rules)


def test_meta_tensors_are_renamed_stacked_and_taken_apart_without_values() -> None:
    rules = [QKV, same("embed", "table"), drop("head", why="tied", repeats="embed")]
    sizes = {"q": 5, "k": 3, "v": 2, "embed": 7, "head": 7}
    ours = convert({key: torch.empty(n, 4, device="meta") for key, n in sizes.items()}, rules)
    assert {name: tuple(value.shape) for name, value in ours.items()} == {"qkv": (10, 4), "table": (7, 4)}
    assert all(value.is_meta for value in ours.values())
    assert revert(ours, rules)["k"].shape == (3, 4)


@pytest.mark.parametrize(
    "expert",
    [
        ExpertConfig(width=8, mlp_dim=15, num_layers=4),
        ExpertConfig(width=8, mlp_dim=15, num_layers=4, self_attn_every=3),
        ExpertConfig(width=8, mlp_dim=15, num_layers=2, self_attn_every=4),
        ExpertConfig(width=8, mlp_dim=15, num_layers=4, attention="self"),
    ],
    ids=["every second", "every third", "all but the first cross, half as many", "self"],
)
@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied"])
def test_all_weights_of_a_policy_survive_the_round_trip_bit_for_bit(expert: ExpertConfig, tied: bool) -> None:
    torch.manual_seed(0)
    vlm = replace(VLM_CFG, decoder=replace(VLM_CFG.decoder, tied=tied))
    cfg = VLAConfig(vlm=vlm, expert=expert, state_dim=5, action_dim=3)
    ours, rules = build_model(cfg).state_dict(), vla_rules(cfg)
    theirs = revert(ours, rules)
    assert sum(value.numel() for value in theirs.values()) == sum(value.numel() for value in ours.values())
    back = convert(theirs, rules)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], value) for name, value in ours.items())


def test_a_checkpoint_with_more_layers_than_the_configuration_is_refused() -> None:
    deeper = replace(VLM_CFG, decoder=replace(VLM_CFG.decoder, num_layers=5))
    theirs = revert(build_model(deeper, "meta").state_dict(), vlm_rules(deeper))
    with pytest.raises(CheckpointError, match=r"9 in no rule \['model\.text_model\.layers\.4\."):
        convert(theirs, vlm_rules(VLM_CFG))


def test_a_model_with_a_stem_has_no_released_names() -> None:
    stem = replace(VLM_CFG, vision=replace(VLM_CFG.vision, patch_size=4, stem=(6,)), shuffle=3)
    with pytest.raises(CheckpointError, match=r"\['vision\.stem\.0\.bias', 'vision\.stem\.0\.weight'\]"):
        revert(build_model(stem, "meta").state_dict(), vlm_rules(stem))
