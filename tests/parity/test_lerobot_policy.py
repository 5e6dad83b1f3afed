"""A SmolVLA of lerobot, from its folder to actions: prepared, run and written back as lerobot does."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lerobot_reference import MODEL, build_policy, make_processors, save_policy
from released import edit, write_released
from tailorbird.checkpoint.policy import write_policy
from tailorbird.errors import DataError
from tailorbird.infer.policy import Policy, load_policy
from tailorbird.processing.aloha import decode_actions, decode_state, encode_actions
from tailorbird.processing.image import Letterbox
from tailorbird.storage import new_folder
from tailorbird.wire import Observation

pytestmark = pytest.mark.parity
CLOSE = 1e-5  # of the largest action, fp32
SIZES = {"camera1": (48, 64), "camera2": (53, 41), "camera3": (37, 37)}  # wide, tall, as the model reads
TASKS = ("sew two leaves", "open it\n", "", "a small bird sews in this picture")
Stats = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vlm")
    write_released(folder)
    return folder


def make_stats(state: int = 5, action: int = 4, seed: int = 0) -> Stats:
    generator = torch.Generator().manual_seed(seed)

    def some(width: int) -> dict[str, Tensor]:
        low = torch.randn(width, generator=generator)
        spans = torch.rand(3, width, generator=generator) + 0.5
        return {
            "mean": low + spans[0],
            "std": spans[1],
            "min": low,
            "max": low + 3 * spans[2],
            "q01": low + 0.1,
            "q99": low + 2 * spans[2],
            "q10": low + 0.2,
            "q90": low + spans[2],
        }

    return {"observation.state": some(state), "action": some(action)}


def look(cameras: tuple[str, ...], width: int = 5, num: int = 1, seed: int = 0) -> list[Observation]:
    rng = np.random.default_rng(seed)
    return [
        Observation(
            images={name: rng.integers(0, 256, (*SIZES[name], 3), np.uint8) for name in cameras},
            state=rng.normal(size=width).astype(np.float32),
            task=TASKS[i],
        )
        for i in range(num)
    ]


def act_there(policy: Any, processors: tuple[Any, Any], seen: list[Observation], noise: Tensor) -> Tensor:
    """lerobot's chain: pictures as its robots hand them over, prepared, acted on, and written back."""
    before, after = processors
    batch: dict[str, Any] = {
        f"observation.images.{name}": torch.stack(
            [torch.from_numpy(one.images[name]).permute(2, 0, 1).float() / 255 for one in seen]
        )
        for name in seen[0].images
    }
    batch["observation.state"] = torch.stack([torch.from_numpy(one.state) for one in seen])
    batch["task"] = [one.task for one in seen]
    policy.reset()
    return after(policy.predict_action_chunk(before(batch), noise=noise))


def act_here(policy: Policy, seen: list[Observation], noise: Tensor) -> Tensor:
    return torch.stack([torch.from_numpy(one.actions) for one in policy.act_batch(seen, noise=noise)])


def start(num: int, seed: int = 3) -> Tensor:
    return torch.randn(num, 7, 11, generator=torch.Generator().manual_seed(seed))


def require_same(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert ours.std() > 0.01
    assert (ours - theirs).abs().max() < CLOSE * theirs.abs().max()


def compare(policy: Any, stats: Stats, folder: Path, seen: list[Observation], **changes: Any) -> Policy:
    """Save with lerobot, load here, act in both."""
    ours = load_policy(save_policy(policy, stats, folder), device="cpu", **changes)
    noise = start(len(seen))
    theirs = act_there(policy, make_processors(policy, stats), seen, noise)
    require_same(act_here(ours, seen, noise), theirs)
    return ours


@pytest.mark.parametrize("cameras", [("camera1",), ("camera2", "camera1"), ("camera1", "camera2", "camera3")])
def test_a_saved_policy_acts_the_same_with_one_to_three_cameras(
    vlm: Path, tmp_path: Path, cameras: tuple[str, ...]
) -> None:
    policy = compare(build_policy(vlm, cameras=cameras), make_stats(), tmp_path, look(cameras))
    assert policy.pipeline.cameras == cameras


def test_four_robots_at_once_get_the_same_actions(vlm: Path, tmp_path: Path) -> None:
    cameras = ("camera1", "camera2")
    compare(build_policy(vlm), make_stats(), tmp_path, look(cameras, num=4))


@pytest.mark.parametrize("state", ["MEAN_STD", "MIN_MAX", "QUANTILES", "QUANTILE10", "IDENTITY"])
@pytest.mark.parametrize("action", ["MEAN_STD", "MIN_MAX", "QUANTILES", "QUANTILE10", "IDENTITY"])
def test_each_way_to_normalise_is_theirs_in_both_directions_and_back(
    vlm: Path, tmp_path: Path, state: str, action: str
) -> None:
    modes = {"VISUAL": "IDENTITY", "STATE": state, "ACTION": action}
    from lerobot.configs.types import NormalizationMode

    named = {kind: NormalizationMode(mode) for kind, mode in modes.items()}
    policy, stats = build_policy(vlm, normalization_mapping=named, num_steps=1), make_stats()
    ours = load_policy(save_policy(policy, stats, tmp_path), device="cpu").pipeline
    before, after = make_processors(policy, stats)
    values, actions = torch.randn(3, 5), torch.randn(3, 7, 4)
    seen = before({"observation.state": values, "action": actions, "task": list(TASKS[:3])})
    assert torch.equal(ours.state(values), seen["observation.state"])
    assert torch.equal(ours.prepare_actions(actions)[..., :4], seen["action"])
    assert torch.equal(ours.physical(actions), after(actions))


@pytest.mark.parametrize(
    "size", [(480, 640), (640, 480), (37, 37), (36, 37), (37, 38), (20, 30), (3, 100), (51, 50), (1, 1)]
)
def test_a_picture_of_any_size_becomes_bit_for_bit_theirs(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8, generator=generator)
    theirs = MODEL.resize_with_pad(frames.permute(0, 3, 1, 2).float() / 255, 37, 37, pad_value=0) * 2.0 - 1.0
    assert torch.equal(Letterbox(size=37).scale(frames), theirs)
    assert torch.equal(Letterbox(size=37).scale(frames[1]), theirs[1])


def test_a_camera_that_the_robot_does_not_have_is_left_out_as_there(vlm: Path, tmp_path: Path) -> None:
    policy = build_policy(vlm, cameras=("camera1", "camera2", "camera3"))
    compare(policy, make_stats(), tmp_path, look(("camera1", "camera3")), without=["camera2"])


@pytest.mark.parametrize("special", [False, True])
def test_empty_cameras_and_padding_of_the_prefix_change_nothing(
    vlm: Path, tmp_path: Path, special: bool
) -> None:
    policy = build_policy(vlm, empty_cameras=2, prefix_length=90, add_image_special_tokens=special)
    ours = compare(policy, make_stats(), tmp_path, look(("camera1", "camera2"), num=2))
    assert ours.pipeline.cameras == ("camera1", "camera2")


@pytest.mark.parametrize(
    "settings",
    [
        {"num_vlm_layers": 0},
        {"attention_mode": "self_attn"},
        {"self_attn_every_n_layers": 0},
        {"self_attn_every_n_layers": 1},
        {"num_vlm_layers": 9, "num_expert_layers": 3},
        {
            "expert_width_multiplier": 0.6,
            "chunk_size": 7,
            "num_steps": 3,
            "min_period": 0.01,
            "max_period": 3.0,
        },
        {"add_image_special_tokens": True},
        {"pad_language_to": "longest", "tokenizer_max_length": 33},
    ],
    ids=str,
)
def test_what_config_json_says_of_the_model_is_heeded(
    vlm: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    compare(build_policy(vlm, **settings), make_stats(), tmp_path, look(("camera1", "camera2"), num=2))


def test_an_aloha_acts_the_same_and_its_actions_are_learned_the_same(vlm: Path, tmp_path: Path) -> None:
    settings = {
        "state": 14,
        "action": 14,
        "max_state_dim": 17,
        "max_action_dim": 19,
        "adapt_to_pi_aloha": True,
    }
    policy, stats = build_policy(vlm, **settings), make_stats(14, 14)
    ours = load_policy(save_policy(policy, stats, tmp_path), device="cpu")
    noise, seen = torch.randn(2, 7, 19), look(("camera1", "camera2"), width=14, num=2)
    require_same(act_here(ours, seen, noise), act_there(policy, make_processors(policy, stats), seen, noise))
    joints, chunk = torch.rand(3, 14) * 2 - 1, torch.randn(3, 7, 14)
    assert torch.equal(decode_state(joints), policy._pi_aloha_decode_state(joints.clone()))
    assert torch.equal(encode_actions(chunk), policy._pi_aloha_encode_actions(chunk.clone()))
    assert torch.equal(decode_actions(chunk), policy._pi_aloha_encode_actions_inv(chunk.clone()))
    learned = policy._pi_aloha_encode_actions_inv(ours.pipeline.action(chunk))
    assert torch.equal(ours.pipeline.prepare_actions(chunk), policy.prepare_action({"action": learned}))


def test_cameras_are_renamed_as_the_policy_says_and_as_the_caller_says(vlm: Path, tmp_path: Path) -> None:
    policy, stats, noise = build_policy(vlm), make_stats(), start(1)
    (seen,) = look(("camera1", "camera2"))
    theirs = act_there(policy, make_processors(policy, stats), [seen], noise)
    save_policy(policy, stats, tmp_path)
    path = tmp_path / "policy_preprocessor.json"
    text = path.read_text().replace(
        '"rename_map": {}', '"rename_map": {"observation.images.top": "observation.images.camera1"}'
    )
    path.write_text(text)
    named = replace(seen, images={"top": seen.images["camera1"], "side": seen.images["camera2"]})
    require_same(
        act_here(load_policy(tmp_path, device="cpu", rename={"side": "camera2"}), [named], noise), theirs
    )
    other = replace(seen, images={"a": seen.images["camera1"], "side": seen.images["camera2"]})
    both = load_policy(tmp_path, device="cpu", rename={"side": "camera2", "a": "camera1"})
    require_same(act_here(both, [other], noise), theirs)
    with pytest.raises(
        DataError, match=r"no picture from \['top', 'camera2'\]: .* has \['a', 'side'\].*rename="
    ):
        load_policy(tmp_path, device="cpu").act(other)


def into_older_layout(folder: Path, stats: Stats) -> None:
    """As lerobot saved before it had processors: statistics among the weights, and fewer fields."""
    for file in folder.glob("policy_*"):
        file.unlink()
    weights = load_file(folder / "model.safetensors")
    for name, value in stats["observation.state"].items():
        weights[f"normalize_inputs.buffer_observation_state.{name}"] = value
    for part in ("normalize_targets", "unnormalize_outputs"):
        weights |= {f"{part}.buffer_action.{name}": value for name, value in stats["action"].items()}
    save_file({k: v.clone() for k, v in weights.items()}, folder / "model.safetensors")
    absent = (
        "rtc_config",
        "compile_model",
        "use_peft",
        "min_period",
        "num_steps",
        "pretrained_path",
        "repo_id",
    )
    edit(folder / "config.json", **dict.fromkeys(absent))


def test_the_older_layout_with_statistics_among_the_weights_acts_the_same(vlm: Path, tmp_path: Path) -> None:
    policy, stats = build_policy(vlm), make_stats()
    old = {k: {name: one[name] for name in ("mean", "std", "min", "max")} for k, one in stats.items()}
    into_older_layout(save_policy(policy, stats, tmp_path), old)
    seen, noise = look(("camera1", "camera2")), start(1)
    theirs = act_there(policy, make_processors(policy, stats), seen, noise)
    require_same(act_here(load_policy(tmp_path, device="cpu"), seen, noise), theirs)


def processors_from(folder: Path) -> tuple[Any, Any]:
    from lerobot.processor import PolicyProcessorPipeline
    from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action

    before = PolicyProcessorPipeline.from_pretrained(folder, config_filename="policy_preprocessor.json")
    after = PolicyProcessorPipeline.from_pretrained(
        folder,
        config_filename="policy_postprocessor.json",
        to_transition=policy_action_to_transition,
        to_output=transition_to_policy_action,
    )
    return before, after


@pytest.mark.parametrize("mode", ["MEAN_STD", "MIN_MAX", "QUANTILE10", "IDENTITY"])
def test_what_is_saved_here_is_loaded_by_lerobot_and_acts_the_same(
    vlm: Path, tmp_path: Path, mode: str
) -> None:
    from lerobot.configs.types import NormalizationMode

    named = {kind: NormalizationMode(mode) for kind in ("STATE", "ACTION")}
    cameras = ("camera1", "camera2", "camera3")
    policy = build_policy(vlm, cameras=cameras, normalization_mapping=named, empty_cameras=1)
    source = save_policy(policy, make_stats(), tmp_path / "theirs")
    ours = load_policy(source, device="cpu", rename={"top": "camera1"}, without=("camera2",))
    with new_folder(tmp_path / "ours") as folder:
        write_policy(folder, ours.model.state_dict(), ours.model.cfg, ours.pipeline)
    saved = MODEL.SmolVLAPolicy.from_pretrained(tmp_path / "ours", strict=True).float()
    assert {p.stem for p in (tmp_path / "ours").glob("policy_*")} == {p.stem for p in source.glob("policy_*")}
    kept, written = (load_file(one / "model.safetensors") for one in (source, tmp_path / "ours"))
    assert kept.keys() == written.keys()
    assert all(torch.equal(kept[key], written[key]) for key in kept)
    (seen,) = look(("camera1", "camera3"))
    noise = start(1)
    seen = replace(seen, images={"top": seen.images["camera1"], "camera3": seen.images["camera3"]})
    theirs = act_there(saved, processors_from(tmp_path / "ours"), [seen], noise)
    require_same(act_here(ours, [seen], noise), theirs)
    shutil.move(vlm / "config.json", vlm / "away")  # ours needs the VLM no more
    try:
        again = load_policy(tmp_path / "ours", device="cpu")
    finally:
        shutil.move(vlm / "away", vlm / "config.json")
    assert torch.equal(act_here(again, [seen], noise), act_here(ours, [seen], noise))


def test_names_and_words_that_lie_elsewhere_still_do_when_saved_here(vlm: Path, tmp_path: Path) -> None:
    policy, stats = build_policy(vlm), make_stats()
    source, words = save_policy(policy, stats, tmp_path / "theirs"), shutil.copytree(vlm, tmp_path / "words")
    path = source / "policy_preprocessor.json"
    chain = json.loads(path.read_text())
    steps = {step["registry_name"]: step["config"] for step in chain["steps"]}
    cameras = ["observation.images.camera1", "observation.images.camera2"]
    steps["rename_observations_processor"]["rename_map"] = {"observation.pixels": cameras[0]}
    steps["tokenizer_processor"]["tokenizer_name"] = str(words)
    path.write_text(json.dumps(chain))
    ours = load_policy(source, device="cpu", rename={"side": "camera2"})
    assert ours.pipeline.robot_cameras == ("pixels", "side")
    with new_folder(tmp_path / "ours") as folder:
        write_policy(folder, ours.model.state_dict(), ours.model.cfg, ours.pipeline)
    assert str(words) in (tmp_path / "ours/policy_preprocessor.json").read_text()
    one, other, rest = torch.rand(1, 3, 8, 9), torch.rand(1, 3, 9, 8), {"observation.state": torch.rand(1, 5)}
    expected = make_processors(policy, stats)[0](
        {cameras[0]: one, cameras[1]: other, "task": ["sew"], **rest}
    )
    found = processors_from(tmp_path / "ours")[0](
        {"observation.pixels": one, "observation.images.side": other, "task": ["sew"], **rest}
    )
    tensors = {key: value for key, value in expected.items() if isinstance(value, Tensor)}
    assert {*cameras, "observation.language.tokens"} <= tensors.keys()
    assert all(torch.equal(found[key], value) for key, value in tensors.items())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_weights_act_nearly_the_same(vlm: Path, tmp_path: Path, dtype: str) -> None:
    policy, stats = build_policy(vlm), make_stats()
    save_policy(policy, stats, tmp_path)
    seen, noise = look(("camera1", "camera2")), start(1)
    wide, narrow = (load_policy(tmp_path, device="cpu", dtype=kind) for kind in (None, dtype))
    found, expected = act_here(narrow, seen, noise), act_here(wide, seen, noise)
    assert narrow.model.vlm.vision.norm.weight.dtype is getattr(torch, dtype)
    assert 0 < (found - expected).abs().max() < 0.1 * expected.abs().max()
