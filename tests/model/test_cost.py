"""Costs from the configuration against a counted run of the model, and floors with known answers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tailorbird.errors import ConfigError
from tailorbird.model.build import build_model
from tailorbird.model.cache import StaticCache
from tailorbird.model.config import VLAConfig, VLMConfig
from tailorbird.model.cost import DEVICES, Cost, Device, chunk_cost, floor_s, policy_cost, vlm_cost
from tailorbird.model.expert import CrossBlock
from tailorbird.model.sizes import SIZES, SMOLVLA_BASE, TINY
from tailorbird.model.vla import VLA
from tailorbird.model.vlm import VLM
from tailorbird.types import Inputs


def counted(run: Callable[[], Any]) -> tuple[int, Any]:
    """Operations of a run on the meta device, and its result.

    There attention becomes matrix products, which the counter knows; it passes over the CPU's attention.
    """
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        result = run()
    return counter.get_total_flops(), result


def num_parameters(*modules: nn.Module) -> int:
    return sum(value.numel() for module in modules for value in module.parameters())


def read(cfg: VLAConfig, cameras: int, words: int, batch: int) -> tuple[VLA, Inputs]:
    model, side = build_model(cfg, "meta"), cfg.vlm.vision.image_size
    assert isinstance(model, VLA)
    with torch.device("meta"):
        seen = Inputs(
            pixels=torch.empty(batch, cameras, 3, side, side),
            ids=torch.empty(batch, words, dtype=torch.long),
            ids_valid=torch.empty(batch, words, dtype=torch.bool),
            state=torch.empty(batch, cfg.state_dim),
        )
    return model, seen


def check_policy(cfg: VLAConfig, *, cameras: int, words: int, batch: int) -> None:
    """Every stage costs what its part of a real run costs."""
    model, seen = read(cfg, cameras, words, batch)
    found = policy_cost(cfg, cameras=cameras, words=words, batch=batch)
    vision, _ = counted(lambda: model.embed_images(seen.pixels))
    sights = torch.empty(batch, cameras, cfg.vlm.tokens_per_image, cfg.vlm.decoder.width, device="meta")
    looking, scene = counted(lambda: model.look(sights, seen.ids, seen.ids_valid))
    state, prefix = counted(lambda: model.feel(scene, seen.state))
    x_t = torch.empty(batch, cfg.chunk, cfg.action_dim, device="meta")
    t = torch.empty(batch, device="meta")
    step, _ = counted(lambda: model.velocity(x_t, t, prefix))
    whole, _ = counted(lambda: model.sample(model.encode(seen), x_t))
    assert {name: cost.flops for name, cost in found.items()} == {
        "vision": vision,
        "prefix": looking,
        "state": state,
        "step": step,
    }
    assert sum(cost.flops for cost in chunk_cost(found, cfg).values()) == whole
    check_policy_bytes(model, found, prefix.valid.numel(), batch)


def check_policy_bytes(model: VLA, found: dict[str, Cost], positions: int, batch: int) -> None:
    vlm, expert = model.vlm, model.expert
    cross = [block.attn for block in expert.blocks if isinstance(block, CrossBlock)]
    projections = num_parameters(*(part for attn in cross for part in (attn.key, attn.value)))
    ends = num_parameters(model.action_in, model.time_in, model.time_out, model.action_out)
    *blocks, last = vlm.decoder.blocks
    read = num_parameters(*blocks, last.norm_1, last.attn.qkv)  # and few rows of the embedding
    assert found["vision"].weights == num_parameters(vlm.vision, vlm.connector)
    assert found["prefix"].weights == read + projections
    assert found["state"].weights == read + projections + num_parameters(model.state_in)
    assert found["step"].weights == num_parameters(expert) - projections + ends
    kv = 2 * vlm.decoder.cfg.num_kv_heads * vlm.decoder.cfg.head_dim
    assert found["step"].cached == len(expert.blocks) * positions * kv
    assert found["state"].cached == len(blocks) * (positions - batch) * kv
    assert (found["vision"].cached, found["prefix"].cached) == (0, 0)


@pytest.mark.parametrize("attention", ["interleaved", "cross", "self"])
@pytest.mark.parametrize(("cameras", "words", "batch"), [(1, 6, 1), (2, 5, 3)])
def test_a_policy_costs_what_a_counted_run_costs(
    vla_config: VLAConfig, attention: Any, cameras: int, words: int, batch: int
) -> None:
    expert = replace(vla_config.expert, attention=attention)
    check_policy(replace(vla_config, expert=expert), cameras=cameras, words=words, batch=batch)


@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint"])
def test_a_solver_that_calls_the_expert_twice_a_step_costs_twice_the_steps(
    vla_config: VLAConfig, solver: Any
) -> None:
    check_policy(replace(vla_config, solver=solver), cameras=1, words=4, batch=1)


def test_an_expert_of_fewer_layers_and_images_between_tokens_are_counted(vla_config: VLAConfig) -> None:
    expert = replace(vla_config.expert, num_layers=2, self_attn_every=1)
    around = replace(vla_config, expert=expert, image_start=(2, 3), image_end=(4,), empty_images=2)
    check_policy(around, cameras=3, words=5, batch=2)


@pytest.mark.parametrize("cfg", [SMOLVLA_BASE, TINY], ids=["smolvla-base", "tiny"])
@pytest.mark.parametrize("cameras", [1, 3])
def test_the_released_policies_cost_what_a_counted_run_costs(cfg: VLAConfig, cameras: int) -> None:
    check_policy(cfg, cameras=cameras, words=48, batch=1)


def check_vlm(cfg: VLMConfig, *, tiles: int, tokens: int, batch: int, context: int) -> None:
    model, side = build_model(cfg, "meta"), cfg.vision.image_size
    assert isinstance(model, VLM)
    found = vlm_cost(cfg, tiles=tiles, tokens=tokens, batch=batch, context=context)
    pixels = torch.empty(batch * tiles, 3, side, side, device="meta")
    x = torch.empty(batch, context, cfg.decoder.width, device="meta")

    def answer(cache: StaticCache, new: int) -> torch.Tensor:
        return model.logits(model.decoder(x[:, :new], cache=cache)[:, -1:])

    vision, patches = counted(lambda: model.vision(pixels))
    connector, _ = counted(lambda: model.connector(patches))
    prefill, _ = counted(lambda: answer(StaticCache(tokens), tokens))
    cache = StaticCache(context + 1)
    counted(lambda: model.decoder(x, cache=cache))
    decode, _ = counted(lambda: answer(cache, 1))
    flops = {"vision": vision, "connector": connector, "prefill": prefill, "decode": decode}
    assert {name: cost.flops for name, cost in found.items()} == flops
    head = num_parameters(model.decoder.embed if model.head is None else model.head)
    words = num_parameters(model.decoder) - num_parameters(model.decoder.embed) + head
    weights = {"vision": num_parameters(model.vision), "connector": num_parameters(model.connector)}
    assert {name: cost.weights for name, cost in found.items()} == {
        **weights,
        "prefill": words,
        "decode": words,
    }
    kv = 2 * cfg.decoder.num_layers * cfg.decoder.num_kv_heads * cfg.decoder.head_dim
    assert found["decode"].cached == batch * context * kv


@pytest.mark.parametrize("shuffle", [2, 3, 4])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 6])
def test_a_vlm_costs_what_a_counted_run_costs(vlm_config: VLMConfig, shuffle: int, num_kv_heads: int) -> None:
    vision = replace(vlm_config.vision, image_size=49)  # 12 patches a side, and a rim that nothing reads
    decoder = replace(vlm_config.decoder, num_kv_heads=num_kv_heads, tied=num_kv_heads == 2)
    cfg = replace(vlm_config, vision=vision, decoder=decoder, shuffle=shuffle)
    check_vlm(cfg, tiles=2, tokens=17, batch=3, context=19)


@pytest.mark.parametrize("name", [name for name, cfg in SIZES.items() if isinstance(cfg, VLMConfig)])
def test_the_released_vlms_cost_what_a_counted_run_costs(name: str) -> None:
    cfg = SIZES[name]
    assert isinstance(cfg, VLMConfig)
    check_vlm(cfg, tiles=3, tokens=260, batch=1, context=271)


def test_what_is_not_shown_costs_nothing(vlm_config: VLMConfig) -> None:
    found = vlm_cost(vlm_config, tiles=0, tokens=9)
    assert found["vision"] == found["connector"] == Cost()
    assert found["decode"] == vlm_cost(vlm_config, tiles=0, tokens=1, context=9)["decode"]


def test_the_floor_is_set_stage_by_stage_by_whichever_takes_longer() -> None:
    device = Device("abacus", {"float32": 100.0, "bfloat16": 300.0, "int8": 600.0}, bytes_s=10.0, source="")
    computing, reading = Cost(flops=600, weights=5), Cost(flops=6, weights=5, cached=10)
    assert floor_s([computing], device, "float32") == 6
    assert floor_s([computing, reading], device, "float32") == 6 + (5 * 4 + 10 * 4) / 10
    assert floor_s([computing, reading], device, "bfloat16") == 2 + (5 * 2 + 10 * 2) / 10
    assert floor_s([computing, reading], device, "int8") == 1 + (5 * 1 + 10 * 2) / 10
    assert floor_s([computing, reading], device, "int4") == 2 + (5 * 0.5 + 10 * 2) / 10
    assert floor_s([reading * 3], device, "bfloat16") == 3 * floor_s([reading], device, "bfloat16")
    assert computing + reading == Cost(flops=606, weights=10, cached=10)


def test_a_dtype_that_a_device_has_no_rate_for_is_refused() -> None:
    device = Device("abacus", {"float32": 100.0}, bytes_s=10.0, source="")
    with pytest.raises(ConfigError, match=r"no rate of abacus in bfloat16: there are float32"):
        floor_s([Cost(1)], device, "bfloat16")
    with pytest.raises(ConfigError, match=r"no rate of H200 in float8"):
        floor_s([Cost(1)], DEVICES["H200"], "float8")
