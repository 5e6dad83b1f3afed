"""Policies in lerobot's layout: what is refused, and in which words. That they act the same is in parity/."""

import json
import os
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lerobot_folder import ACTION, MODEL, STATE, make_pipeline, write_folder
from released import edit, words, write_released
from tailorbird.checkpoint.lerobot import Asked, lerobot_sizes
from tailorbird.checkpoint.policy import fingerprint, read_policy, write_policy
from tailorbird.errors import CheckpointError, ConfigError, MissingStats, TailorbirdError
from tailorbird.infer.policy import load_policy
from tailorbird.model.vla import VLA
from tailorbird.processing.image import Letterbox
from tailorbird.processing.normalize import Identity, Normalizer, RangeNormalizer
from tailorbird.storage import new_folder

BEFORE = "policy_preprocessor.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "policy")


def change(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def refusal(folder: Path, kind: type[Exception] = CheckpointError, asked: Asked | None = None) -> str:
    with pytest.raises(kind) as caught:
        read_policy(folder, asked=asked)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message or kind is ConfigError
    return message


def test_what_was_written_comes_back(folder: Path) -> None:
    model, pipeline = read_policy(folder)
    assert model.cfg == MODEL
    assert (pipeline.cameras, pipeline.image) == (("top", "image"), Letterbox(size=37))
    assert pipeline.state == STATE
    assert pipeline.action == ACTION
    assert (pipeline.tokenizer.json, pipeline.tokenizer.max_tokens) == (words(), 24)
    assert pipeline.lerobot is not None
    assert pipeline.lerobot["n_action_steps"] == 7
    assert list(pipeline.lerobot["input_features"])[1:] == ["observation.images.top", "observation.image"]
    assert pipeline.lerobot["normalization_mapping"]["ACTION"] == "MIN_MAX"


def test_shards_are_read(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, index = sorted(weights), {}
    for number, part in enumerate((names[:30], names[30:]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    model, _ = read_policy(folder)
    assert torch.equal(model.state_in.weight, weights["model.state_proj.weight"])


def test_sizes_and_words_of_the_vlm_come_from_where_config_json_says(folder: Path, tmp_path: Path) -> None:
    vlm, steps = tmp_path / "vlm", folder / "policy_preprocessor.json"
    vlm.mkdir()
    write_released(vlm)
    (folder / "vlm/config.json").unlink()
    (folder / "tokenizer.json").unlink()
    edit(folder / "config.json", vlm_model_name="nobody/knows/it")
    assert "needs the VLM that it names: nobody/knows/it is no folder" in refusal(folder)
    edit(folder / "config.json", vlm_model_name=str(vlm))
    steps.write_text(steps.read_text().replace("somebody/vlm", str(vlm)))
    assert read_policy(folder)[0].cfg == MODEL


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"type": "act"}, "a policy of type 'act', and of lerobot's policies only smolvla is read"),
        ({"type": "pi0"}, "a policy of type 'pi0'"),
        (
            {"use_delta_joint_actions_aloha": True},
            "use_delta_joint_actions_aloha is True and should be False",
        ),
        ({"use_peft": True}, "use_peft is True"),
        ({"use_cache": False}, "use_cache is False"),
        ({"secret_scale": 2.0}, "fields that no SmolVLA is known to have.*secret_scale"),
        ({"attention_mode": "flash"}, "attention_mode is 'flash'"),
        ({"resize_imgs_with_padding": [36, 36]}, "differ in pictures, px: 37 and 36"),
        ({"resize_imgs_with_padding": [36, 37]}, "the side of the vision tower's picture, twice"),
        ({"resize_imgs_with_padding": None, "num_steps": 0}, "num_steps"),
        ({"num_vlm_layers": "many"}, "num_vlm_layers is 'many'"),
        ({"expert_width_multiplier": 1e9}, "shape|no model has such sizes"),
        ({"expert_width_multiplier": 1e300}, "no model has such sizes|too few|is no policy"),
        ({"max_state_dim": 3}, "reads 3 state values, there are statistics of 5"),
        ({"max_state_dim": 8}, r"state_in.weight has shape \(30, 9\), the model needs \(30, 8\)"),
        ({"max_action_dim": 2**28}, "action_in.weight has shape|no model has such sizes"),
        ({"chunk_size": -1}, "chunk=-1 must be at least 1"),
        ({"num_expert_layers": 2**27}, "is no multiple|are not a multiple|too few"),
        ({"adapt_to_pi_aloha": True}, "an Aloha has 14 state values, there are statistics of 5"),
        ({"input_features": []}, "input_features is"),
        ({"output_features": {"action": {"shape": [4, 4]}}}, "output_features"),
        (
            {"output_features": {"action": {"shape": [6]}}},
            "action: 6 values are needed, .*policy has statistics of 4: ",
        ),
        ({"vlm_model_name": 3}, "vlm_model_name"),
        ({"chunk_size": 4097}, "chunk_size is 4097 and should be at most 4096"),
        ({"num_steps": 1001}, "num_steps is 1001 and should be at most 1000"),
        ({"empty_cameras": 17}, "empty_cameras is 17 and should be at most 16"),
        ({"n_action_steps": "all"}, "n_action_steps is 'all'"),
        ({"n_action_steps": 0}, "n_action_steps is 0 and should be at least 1"),
        ({"normalization_mapping": ["MEAN_STD"]}, "normalization_mapping is"),
        ({"normalization_mapping": {"STATE": ["MEAN_STD"]}}, "normalization_mapping is"),
    ],
    ids=str,
)
def test_a_config_that_cannot_act_the_same_is_refused_with_its_reason(
    folder: Path, changes: dict[str, Any], words: str
) -> None:
    if "vlm_model_name" in changes:
        (folder / "vlm/config.json").unlink()
    edit(folder / "config.json", **changes)
    assert re.search(words, refusal(folder))


def test_a_number_of_steps_that_is_null_is_refused_before_anything_is_saved(folder: Path) -> None:
    change(folder / "config.json", lambda value: value.update(n_action_steps=None))
    assert "n_action_steps is None" in refusal(folder)


def test_the_folder_around_a_policy_names_the_one_inside(folder: Path, tmp_path: Path) -> None:
    outer = tmp_path / "checkpoints/020000"
    outer.mkdir(parents=True)
    folder.rename(outer / "pretrained_model")
    (outer / "training_state").mkdir()
    assert f"{outer}/config.json is missing: name {outer}/pretrained_model" in refusal(outer)


def step(number: int, **changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda value: value["steps"][number].update(changes)


@pytest.mark.parametrize(
    ("alter", "reason"),
    [
        (step(0, registry_name="delta_actions"), "has a step 'delta_actions', and what is read"),
        (lambda v: v["steps"].pop(2), "has no step smolvla_new_line_processor"),
        (lambda v: v["steps"].append(v["steps"][5]), "has a step 'normalizer_processor'"),
        (step(5, state_file="../elsewhere.safetensors"), "state_file is '../elsewhere.safetensors'"),
        (step(5, state_file="none.safetensors"), "none.safetensors is missing"),
        (lambda v: v["steps"][5]["config"].update(eps=-1), "eps is -1"),
        (lambda v: v["steps"][5]["config"]["norm_map"].update(STATE="LOG"), "normalised by 'LOG'"),
        (lambda v: v["steps"][5]["config"]["norm_map"].update(VISUAL="MEAN_STD"), "sees them as they are"),
        (lambda v: v["steps"][5]["config"]["norm_map"].update(ACTION="MEAN_STD"), "norm_map"),
        (lambda v: v["steps"][4]["config"].update(float_dtype="bfloat16"), "float_dtype is 'bfloat16'"),
        (lambda v: v["steps"][3]["config"].update(max_length="long"), "max_length is 'long'"),
        (lambda v: v.update(steps={"a": 1}), "has no step"),
        (lambda v: v.update(steps=[3]), "has a step 3"),
        (lambda v: v["steps"][0]["config"].update(rename_map={"a": 3}), "rename_map"),
        (lambda v: v["steps"].insert(2, v["steps"].pop(3)), "tokenizer_processor before smolvla_new_line"),
        (lambda v: v["steps"][3]["config"].pop("tokenizer_name"), "tokenizer_name is None"),
    ],
)
def test_a_step_that_would_change_the_numbers_is_refused(
    folder: Path, alter: Callable[[dict[str, Any]], object], reason: str
) -> None:
    change(folder / "policy_preprocessor.json", alter)
    assert reason in refusal(folder)


FILES = (
    "config.json",
    "model.safetensors",
    "policy_preprocessor.json",
    "policy_postprocessor.json",
    "policy_preprocessor_step_5_normalizer_processor.safetensors",
    "policy_postprocessor_step_0_unnormalizer_processor.safetensors",
    "tokenizer.json",
    "vlm/config.json",
)


@pytest.mark.parametrize("name", FILES[1:])
@pytest.mark.parametrize("keep", [0, 1, 20, -1])
def test_a_file_that_was_cut_is_named(folder: Path, name: str, keep: int) -> None:
    path = folder / name
    os.truncate(path, keep if keep >= 0 else path.stat().st_size - 3)
    refusal(folder)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("json")])
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe\x00", b"[" * 200_000, b'{"type":"smolvla","steps":' + b"9" * 5000 + b"}"],
    ids=["empty", "cut", "a list", "no text", "nested without end", "a number without end"],
)
def test_a_broken_text_file_is_named(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    refusal(folder)


def keyed(folder: Path, rename: Callable[[str], str]) -> None:
    for path in folder.glob("policy_*.safetensors"):
        save_file({rename(key): value for key, value in load_file(path).items()}, path)


def test_statistics_of_several_sets_are_offered_and_one_is_taken(folder: Path) -> None:
    keyed(folder, lambda key: f"so100.buffer.{key}")
    message = refusal(folder, MissingStats)
    assert "no mean and std for 'observation.state'" in message
    assert (
        "stats=: the folder of a LeRobot dataset, its meta/stats.json, or one of the sets in it: so100"
        in message
    )
    assert lerobot_sizes(folder) == MODEL
    assert load_policy(folder, device="cpu", stats="so100").pipeline.state == STATE
    assert "no set of statistics in" in refusal(folder, MissingStats, Asked(stats="so101"))


def test_statistics_can_be_those_of_a_dataset(folder: Path, tmp_path: Path) -> None:
    keyed(folder, lambda key: f"other.{key}")
    stats = {
        "observation.state": {"mean": [9.0] * 5, "std": [2.0] * 5},
        "action": {"min": [0.0] * 4, "max": [3.0] * 4},
    }
    (tmp_path / "set/meta").mkdir(parents=True)
    (tmp_path / "set/meta/stats.json").write_text(json.dumps(stats))
    for place in (tmp_path / "set", tmp_path / "set/meta/stats.json"):
        pipeline = load_policy(folder, device="cpu", stats=place).pipeline
        assert pipeline.state == Normalizer(mean=(9.0,) * 5, std=(2.0,) * 5)
        assert pipeline.action == RangeNormalizer(low=(0.0,) * 4, high=(3.0,) * 4)


def test_statistics_that_do_not_fit_are_named_by_where_they_are_from(folder: Path) -> None:
    stats = {
        "observation.state": {"mean": [9.0] * 6, "std": [2.0] * 6},
        "action": {"min": [0.0] * 4, "max": [3.0] * 4},
    }
    with pytest.raises(CheckpointError, match=r"state: 5 values are needed, my/data has statistics of 6: "):
        read_policy(folder, asked=Asked(stats=stats, source="my/data"))
    del stats["observation.state"]
    with pytest.raises(MissingStats, match=r"for 'observation.state': my/data holds \['action'\]"):
        read_policy(folder, asked=Asked(stats=stats, source="my/data"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_statistics_that_are_no_numbers_are_refused(folder: Path, value: float) -> None:
    for path in folder.glob("policy_*.safetensors"):
        save_file({key: torch.full_like(one, value) for key, one in load_file(path).items()}, path)
    assert "must be finite" in refusal(folder)


def test_without_normalisation_no_statistics_are_needed(folder: Path) -> None:
    for path in folder.glob("policy_*.json"):
        path.write_text(path.read_text().replace("MEAN_STD", "IDENTITY").replace("MIN_MAX", "IDENTITY"))
    keyed(folder, lambda key: f"other.{key}")
    pipeline = read_policy(folder)[1]
    assert (pipeline.state, pipeline.action) == (Identity(width=5), Identity(width=4))


@pytest.mark.parametrize(
    ("alter", "reason"),
    [
        (lambda w: w.pop("model.state_proj.bias"), "model.state_proj.bias"),
        (lambda w: w.update(extra=torch.zeros(2)), "extra"),
        (lambda w: w.update({"model.state_proj.bias": torch.zeros(3)}), "state_in.bias has shape"),
    ],
)
def test_weights_that_are_missing_unknown_or_of_another_size_are_named(
    folder: Path, alter: Callable[[dict[str, Tensor]], object], reason: str
) -> None:
    weights = load_file(folder / "model.safetensors")
    alter(weights)
    save_file(weights, folder / "model.safetensors")
    assert reason in refusal(folder)


def test_cameras_that_the_policy_does_not_have_are_refused_with_those_it_has(folder: Path) -> None:
    assert "no camera wrist: the policy's cameras are top, image" in refusal(
        folder, ConfigError, Asked(rename={"a": "wrist"})
    )
    assert "no camera side" in refusal(folder, ConfigError, Asked(without=("side",)))
    assert "a policy needs a picture" in refusal(folder, ConfigError, Asked(without=("top", "image")))
    assert "gives one camera two pictures" in refusal(
        folder, ConfigError, Asked(rename={"a": "top", "b": "top"})
    )


def renamed(folder: Path, **names: str) -> None:
    names_map = {old.replace("__", "."): new for old, new in names.items()}
    change(folder / BEFORE, lambda v: v["steps"][0]["config"].update(rename_map=names_map))


def test_a_saved_name_that_shows_one_picture_as_two_cameras_is_refused_until_one_is_left_out(
    folder: Path,
) -> None:
    renamed(folder, observation__image="observation.images.top")
    assert "one picture as two cameras, top and image" in refusal(folder, ConfigError)
    _, pipeline = read_policy(folder, asked=Asked(without=("image",)))
    assert pipeline.robot_cameras == ("image",)
    _, pipeline = read_policy(folder, asked=Asked(rename={"side": "image"}))
    assert pipeline.robot_cameras == ("image", "side")


def test_what_is_left_out_needs_no_name_unless_the_caller_gives_it_one(folder: Path) -> None:
    renamed(folder, observation__images__a="observation.images.top")
    _, pipeline = read_policy(folder, asked=Asked(without=("top",)))
    assert (pipeline.rename, pipeline.robot_cameras) == ({}, ("image",))
    both = Asked(rename={"b": "top"}, without=("top",))
    assert "a picture to top, which without= leaves out" in refusal(folder, ConfigError, both)


def processor_names(folder: Path) -> tuple[dict[str, str], str]:
    steps = json.loads((folder / BEFORE).read_text())["steps"]
    return steps[0]["config"]["rename_map"], steps[3]["config"]["tokenizer_name"]


def test_names_that_the_processors_had_are_written_as_they_were(folder: Path, tmp_path: Path) -> None:
    names = {
        "observation.pixels": "observation.image",
        "observation.state": "observation.state",
        "observation.images.wrist": "observation.images.gripper",
        "observation.images.a": "observation.images.top",
    }
    change(folder / BEFORE, lambda v: v["steps"][0]["config"].update(rename_map=names))
    change(folder / BEFORE, lambda v: v["steps"][3]["config"].update(tokenizer_name="somebody/words"))
    pixels, *others, (_, top) = names.items()
    asked = {
        "same": (Asked(), names),
        "other": (Asked(rename={"b": "top"}), dict([pixels, *others, ("observation.images.b", top)])),
        "fewer": (Asked(without=("image",)), dict([*others, ("observation.images.a", top)])),
    }
    for name, (changes, expected) in asked.items():
        model, pipeline = read_policy(folder, asked=changes)
        with new_folder(tmp_path / name) as new:
            write_policy(new, model.state_dict(), model.cfg, pipeline)
        assert processor_names(tmp_path / name) == (expected, "somebody/words")
        again = read_policy(tmp_path / name)[1]
        assert again.robot_cameras == pipeline.robot_cameras
        kept, written = (json.loads((one / "config.json").read_text()) for one in (folder, tmp_path / name))
        assert kept.keys() == written.keys()


def test_a_solver_that_lerobot_does_not_have_is_not_lost_in_its_layout(tmp_path: Path) -> None:
    model = VLA(replace(MODEL, solver="heun"))
    with (
        pytest.raises(ConfigError, match=r"steps of Euler only, and this policy's solver is heun: .*'euler'"),
        new_folder(tmp_path / "new") as new,
    ):
        write_policy(new, model.state_dict(), model.cfg, make_pipeline())
    assert not (tmp_path / "new").exists()


def test_the_fingerprint_is_that_of_all_files_that_make_the_actions(folder: Path) -> None:
    before = fingerprint(folder)
    keyed(folder, lambda key: f"other.{key}")
    assert fingerprint(folder) != before


HOSTILE = [
    None,
    True,
    -1,
    0,
    3,
    2**31,
    2**63,
    10**400,
    1e300,
    -0.5,
    "",
    "x",
    [],
    [[]],
    {},
    {"a": {}},
    [None, 1],
]


def spots(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value, as what holds it and under which key."""
    pairs = list(
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    return [(value, key) for key, _ in pairs] + [spot for _, inner in pairs for spot in spots(inner)]


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("json") and "tok" not in name])
def test_whatever_stands_in_a_json_file_is_saved_again_or_refused_in_one_line(
    folder: Path, name: str, tmp_path: Path
) -> None:
    path, rng = folder / name, random.Random(0)
    text, refused = path.read_text(), []
    for number in range(60):
        value = json.loads(text)
        holder, key = rng.choice(spots(value))
        holder[key] = rng.choice(HOSTILE)
        path.write_text(json.dumps(value))
        try:
            model, pipeline = read_policy(folder)
        except TailorbirdError as error:
            refused.append(str(error))
            continue
        with new_folder(tmp_path / f"again{number}") as new:
            write_policy(new, model.state_dict(), model.cfg, pipeline)
        read_policy(tmp_path / f"again{number}")
    assert len(refused) > 20
    assert not any("\n" in reason for reason in refused)
