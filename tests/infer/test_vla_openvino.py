"""The compiled policy acts as torch does: in fp32 to 1e-5, in bfloat16 and int8 as correlated as said."""

import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lerobot_folder import write_folder
from tailorbird.checkpoint.files import FLOATS, INT8, list_tensors
from tailorbird.checkpoint.policy import write_policy
from tailorbird.errors import CheckpointError, ConfigError
from tailorbird.infer.policy import load_policy
from tailorbird.infer.quant import LayerError, policy_layers, quantise, round_inputs
from tailorbird.infer.vla_openvino import CompiledVLA
from tailorbird.model.int8 import Int8Linear, is_int8, shrink, to_int8
from tailorbird.model.vla import VLA
from tailorbird.storage import read_json
from tailorbird.wire import Observation
from tiny import TINY_VLA, VARIANTS, act, new_model, observed


def correlation(one: Tensor, other: Tensor) -> float:
    return float(np.corrcoef(one.flatten(), other.flatten())[0, 1])


@pytest.mark.parametrize("name", VARIANTS)
def test_in_fp32_it_acts_as_torch_does_whatever_the_number_of_robots_cameras_and_words(name: str) -> None:
    model, compiled = new_model(VARIANTS[name]), CompiledVLA(new_model(VARIANTS[name]), "float32")
    for batch, cameras, words in ((1, 1, 4), (3, 2, 6), (2, 3, 5), (1, 1, 4)):
        seen = observed(model.cfg, batch, cameras, words)
        torch.testing.assert_close(act(compiled, seen), act(model, seen), rtol=1e-5, atol=1e-5)


def test_in_bfloat16_its_actions_correlate() -> None:
    seen = observed(TINY_VLA, 4, 2)
    compiled, model = CompiledVLA(new_model(), "bfloat16"), new_model()
    assert correlation(act(compiled, seen), act(model, seen)) > 0.999


def test_a_prefix_outlives_the_next_observation() -> None:
    compiled, first, second = CompiledVLA(new_model(), "float32"), *(observed(TINY_VLA, n, 2) for n in (1, 2))
    noise = torch.zeros(1, TINY_VLA.chunk, TINY_VLA.action_dim)
    prefix = compiled.encode(first)
    before = compiled.sample(prefix, noise)
    compiled.encode(second)
    assert torch.equal(compiled.sample(prefix, noise), before)


def test_threads_that_act_at_once_do_not_mix_their_observations() -> None:
    compiled = CompiledVLA(new_model(), "float32")
    scenes = [observed(TINY_VLA, 1 + i % 2, 2, words=3 + i) for i in range(6)]
    alone, together = [act(compiled, seen) for seen in scenes], [torch.empty(0)] * len(scenes)

    def work(i: int) -> None:
        together[i] = act(compiled, scenes[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(scenes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def int8_model(max_error: float = 0.05) -> tuple[VLA, list[LayerError]]:
    model = new_model()
    return model, quantise(
        model, policy_layers(model), lambda: void(act(model, observed(TINY_VLA, 4, 2))), max_error
    )


def void(_: Tensor) -> None:
    pass


def test_int8_weights_are_at_most_half_a_level_off() -> None:
    weight = torch.randn(7, 11) * torch.logspace(-3, 3, 7)[:, None]
    rounded, scale = to_int8(weight)
    assert rounded.dtype == torch.int8
    assert ((rounded * scale - weight).abs() <= 0.501 * scale).all()
    assert (rounded.abs().amax(1) == 127).all()


def test_inputs_are_rounded_by_token_and_group() -> None:
    x = torch.randn(3, 5, 1000) * torch.tensor([1.0, 100.0, 0.01])[:, None, None]
    x[..., 500:] *= 50  # another group, whose size is not to cost the first one its levels
    error = (round_inputs(x) - x).abs()
    for group in (slice(500), slice(500, None)):
        assert (error[..., group] <= 0.501 / 127 * x[..., group].abs().amax(-1, keepdim=True)).all()


def test_in_int8_its_actions_correlate_and_torch_acts_on_the_rounded_weights() -> None:
    seen, (model, found) = observed(TINY_VLA, 4, 2), int8_model()
    assert all(layer.is_int8 for layer in found)
    assert [layer.error for layer in found] == sorted((layer.error for layer in found), reverse=True)
    rounded = new_model()
    for name in policy_layers(rounded):
        layer = rounded.get_submodule(name)
        weight, scale = to_int8(layer.weight)
        layer.weight.copy_(weight * scale)
    torch.testing.assert_close(act(model, seen), act(rounded, seen), rtol=1e-6, atol=1e-6)
    assert correlation(act(CompiledVLA(model, "int8"), seen), act(new_model(), seen)) > 0.99


def test_a_layer_that_loses_too_much_stays_in_float() -> None:
    model, wild = new_model(), "vlm.vision.blocks.0.up"
    layer = model.get_submodule(wild)
    layer.weight[:, 0] *= 1000  # the levels of all other inputs are used up by one that is always small
    model.get_submodule("vlm.vision.blocks.0.norm_2").weight[0] = 0
    model.get_submodule("vlm.vision.blocks.0.norm_2").bias[0] = 0
    found = quantise(model, policy_layers(model), lambda: void(act(model, observed(TINY_VLA, 4, 2))), 0.05)
    assert [layer.name for layer in found if not layer.is_int8] == [wild]
    assert isinstance(model.get_submodule(wild), torch.nn.Linear)
    assert isinstance(model.get_submodule("expert.blocks.1.mlp.up"), Int8Linear)


def test_what_cannot_be_quantised_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no layer stays within an error of 1e-06: the best has 0\.0"):
        int8_model(1e-6)
    with pytest.raises(ConfigError, match="must be above 0"):
        int8_model(0)
    model = new_model()
    with pytest.raises(ConfigError, match="calibration does not reach"):
        quantise(model, policy_layers(model), lambda: None, 0.05)
    with pytest.raises(TypeError, match="is no linear layer"):
        shrink(model, ["expert.norm"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A policy in lerobot's layout, with weights under which everything matters."""
    policy = load_policy(write_folder(tmp_path / "small"), device="cpu")
    weights, pipeline = new_model(policy.model.cfg).state_dict(), policy.pipeline
    (tmp_path / "policy").mkdir()
    write_policy(tmp_path / "policy", weights, policy.model.cfg, pipeline)
    return tmp_path / "policy"


def observation() -> Observation:
    rng = np.random.default_rng(0)
    pictures = {name: rng.integers(0, 256, (20, 24, 3), np.uint8) for name in ("top", "image")}
    return Observation(images=pictures, state=np.array([0, 1, 2, 3, 4], np.float32), task="pick it up")


def test_the_command_makes_a_folder_that_acts_in_int8_and_holds_no_wider_copy(
    folder: Path, typed: Callable[..., tuple[int | str | None, str]]
) -> None:
    out = folder.parent / "int8"
    code, printed = typed("quantise", folder, "--out", out, "--observations", 2)
    assert code == 0
    assert "others" in printed
    report = read_json(out / "int8.json")
    stored = list_tensors(out / "model.safetensors", {**FLOATS, **INT8})
    names = {layer["name"] for layer in report["layers"] if layer["is_int8"]}
    assert names
    assert {name.removesuffix(".weight") for name, one in stored.items() if one.dtype == torch.int8} == names
    wide = load_policy(folder, device="cpu").act(observation()).actions
    for dtype in (None, "bfloat16"):
        found = load_policy(folder, engine="openvino", dtype=dtype).act(observation()).actions
        assert np.corrcoef(found.ravel(), wide.ravel())[0, 1] > 0.999
    small = load_policy(out, engine="openvino").act(observation()).actions
    assert np.corrcoef(small.ravel(), wide.ravel())[0, 1] > 0.99
    assert is_int8(load_policy(out, device="cpu").model)
    code, _ = typed("quantise", folder, "--out", out)
    assert f"{out} exists" in str(code)
    code, _ = typed("quantise", out, "--out", folder.parent / "again")
    assert "is int8 already" in str(code)


def test_what_an_engine_cannot_do_is_said_before_anything_is_loaded_or_at_once(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no engine 'tensorrt': name torch, graphs, openvino"):
        load_policy(folder, engine="tensorrt")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="computes on the cpu, not on cuda"):
        load_policy("nobody/nothing", engine="openvino", device="cuda")
    with pytest.raises(ConfigError, match=r"weights are not int8: `tailorbird quantise POLICY"):
        load_policy(folder, engine="openvino", dtype="int8")
    with pytest.raises(ConfigError, match="does not compute in float16: name float32, bfloat16, int8"):
        load_policy(folder, engine="openvino", dtype="float16")


def test_without_openvino_its_engine_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # what Python itself does for a module that is barred
    with pytest.raises(ConfigError, match=r"pip install 'tailorbird\[openvino\]'"):
        load_policy(folder, engine="openvino")


def test_int8_weights_where_no_layer_is_are_refused(folder: Path) -> None:
    policy = load_policy(folder, device="cpu")
    weights, pipeline = policy.model.state_dict(), replace(policy.pipeline, lerobot=None)
    for name in ("expert.norm.weight", "expert.nothing.weight"):
        other = folder.parent / name
        other.mkdir()
        write_policy(other, {**weights, name: torch.ones(22, dtype=torch.int8)}, policy.model.cfg, pipeline)
        with pytest.raises(CheckpointError, match="int8 weights where the model has no layer"):
            load_policy(other, device="cpu")


def test_a_policy_that_is_stored_in_bfloat16_is_compiled_too(folder: Path) -> None:
    policy = load_policy(folder, device="cpu", dtype="bfloat16")
    pipeline = replace(policy.pipeline, lerobot=None)
    narrow = folder.parent / "narrow"
    narrow.mkdir()
    write_policy(narrow, policy.model.state_dict(), policy.model.cfg, pipeline)
    found = load_policy(narrow, engine="openvino").act(observation()).actions
    expected = load_policy(folder, device="cpu").act(observation()).actions
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.999
