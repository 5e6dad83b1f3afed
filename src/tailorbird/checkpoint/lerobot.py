"""A SmolVLA as lerobot lays it out: what it saved is read; lerobot_write.py is the way back.

Sizes and words of the VLM lie in another model, which config.json names. What is written has both beside the
rest, in vlm/config.json and tokenizer.json: it needs nothing else, and lerobot looks past them. Fields that
are missing take the defaults of lerobot's SmolVLAConfig. Equality: tests/parity/test_lerobot_policy.py.
"""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from tailorbird.checkpoint.files import find_weights, list_tensors
from tailorbird.checkpoint.folder import read_object, read_words
from tailorbird.checkpoint.hub import find_model
from tailorbird.checkpoint.lerobot_steps import (
    ACTION,
    STATE,
    Around,
    Stats,
    choose,
    model_name,
    read_around,
    require_mode,
    scale,
    short,
    stats_inside,
)
from tailorbird.checkpoint.released import Fields, consistent, vlm_config
from tailorbird.checkpoint.smolvla import load_vla, vla_rules
from tailorbird.checkpoint.table import drop
from tailorbird.errors import CheckpointError, MissingStats, TailorbirdError
from tailorbird.model.config import ExpertConfig, VLAConfig
from tailorbird.model.vla import VLA
from tailorbird.processing.image import Letterbox
from tailorbird.processing.pipeline import Pipeline
from tailorbird.processing.text import ChatTokenizer, InstructionTokenizer

ROPE_THETA = 10_000.0  # SmolVLA's own, whatever its VLM was trained with
VLM = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
EMPTY = "empty_camera_"
MODES = {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
OWN_VLM = "vlm/config.json"
NEUTRAL: dict[str, tuple[Any, ...]] = {  # what each field may be
    "use_delta_joint_actions_aloha": (False,),  # nor does lerobot have it
    "use_peft": (False, None),  # the weights of an adapter lie in another file
    "use_cache": (True,),
    "n_obs_steps": (1,),
}
READ = {
    "type",
    "input_features",
    "output_features",
    "normalization_mapping",
    "chunk_size",
    "n_action_steps",
    "max_state_dim",
    "max_action_dim",
    "resize_imgs_with_padding",
    "empty_cameras",
    "adapt_to_pi_aloha",
    "tokenizer_max_length",
    "num_steps",
    "vlm_model_name",
    "add_image_special_tokens",
    "attention_mode",
    "num_expert_layers",
    "num_vlm_layers",
    "self_attn_every_n_layers",
    "expert_width_multiplier",
    "min_period",
    "max_period",
}
HARMLESS = {  # they change how a policy is trained, stored or run, and none of its numbers
    *("device", "use_amp", "push_to_hub", "repo_id", "private", "tags", "license", "pretrained_path"),
    *("load_vlm_weights", "freeze_vision_encoder", "train_expert_only", "train_state_proj"),
    *(f"optimizer_{name}" for name in ("lr", "betas", "eps", "weight_decay", "grad_clip_norm")),
    *(f"scheduler_{name}" for name in ("warmup_steps", "decay_steps", "decay_lr")),
    *("prefix_length", "pad_language_to"),  # padding is never seen
    *("rtc_config", "compile_model", "compile_mode"),
}
NEWER = {"pretrained_revision"}  # harmless, and unknown to lerobot 0.4
WORDS, NAMES = "tokenizer_name", "rename_map"  # of the processors, kept beside config.json's in a pipeline
INNER = "pretrained_model"  # lerobot's folder of a step of training has the policy in this one


@dataclass(frozen=True)
class Asked:
    """What a caller changes about a policy when it is loaded.

    stats: statistics, or the name of a set.
    widths: how many values the state and the action have, by key, if the policy is to learn another robot.
    source: where statistics are from, in words.
    """

    rename: Mapping[str, str] | None = None
    without: tuple[str, ...] = ()
    stats: Stats | str | None = None
    widths: Mapping[str, int] | None = None
    source: str | None = None

    def applied(self, pipeline: Pipeline, saved: Mapping[str, str]) -> Pipeline:
        """With the names that were `saved`, unless others are asked for the same cameras, or none of these.

        Raises ConfigError if the policy has no such camera, or two would get one picture.
        """
        mine = dict(self.rename or {})
        absent = tuple(dict.fromkeys((*pipeline.absent, *self.without)))
        free = {*pipeline.cameras} - {*mine.values(), *absent}
        kept = {name: camera for name, camera in saved.items() if camera in free}
        return replace(pipeline, rename={**kept, **mine}, absent=absent)


def require_config(folder: Path) -> None:
    """Raises CheckpointError if the policy is not here, but in lerobot's folder inside."""
    inner = folder / INNER
    if not (folder / "config.json").exists() and (inner / "config.json").exists():
        raise CheckpointError(f"{folder}/config.json is missing: name {inner}, which has one")


def read_lerobot(
    folder: Path, asked: Asked, *, device: str = "cpu", dtype: torch.dtype | None = None
) -> tuple[VLA, Pipeline]:
    """The model, narrowed to `dtype` while it is read, or in fp32; and its pipeline.

    Raises:
        CheckpointError: a file is missing or damaged, or the policy is not one that acts the same here.
        MissingStats: there are no statistics for the robot's state or its actions.
        ConfigError: what is asked cannot be done with this policy.
    """
    config, place = read_object(folder / "config.json"), folder / "config.json"
    top = Fields(str(place), "", config)
    _require_kind(top)
    try:
        source = find_weights(folder)
        stored = list_tensors(source)
        inside, stats = stats_inside(stored)
        around = read_around(folder) or _old_around(top, stats)
        cfg, tokenizer = _read_model(folder, top, around)
        pipeline = _read_pipeline(top, around, tokenizer, asked)
    except (CheckpointError, MissingStats):
        raise
    except (TailorbirdError, OSError, AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder} is no policy that can be loaded: {error}") from error
    pipeline = asked.applied(pipeline, around.rename)  # may be refused, before the weights are read
    why = "statistics, which are the pipeline's"
    rules = [*vla_rules(cfg), *(drop(key, why=why) for key in inside)]
    return load_vla(cfg, source, stored, rules, device=device, dtype=dtype or torch.float32), pipeline


def lerobot_sizes(folder: Path) -> VLAConfig:
    """The model of a policy, whether it has statistics or not. Raises CheckpointError as `read_lerobot`."""
    top = Fields(str(folder / "config.json"), "", read_object(folder / "config.json"))
    _require_kind(top)
    return _read_model(folder, top, read_around(folder) or _old_around(top, {}))[0]


def _require_kind(top: Fields) -> None:
    kind, unknown = (
        top.values.get("type"),
        sorted(top.values.keys() - READ - HARMLESS - NEWER - NEUTRAL.keys()),
    )
    if kind != "smolvla":
        raise CheckpointError(
            f"{top.source} describes a policy of type {reprlib.repr(kind)}, and of lerobot's policies only "
            "smolvla is read: name a SmolVLA, or run this one with lerobot"
        )
    if unknown:
        raise CheckpointError(
            f"{top.source} has fields that no SmolVLA is known to have, and which could change its actions: "
            f"{', '.join(unknown)}. Remove them if they mean nothing"
        )
    top.require(NEUTRAL)
    if top.whole("n_action_steps", 50) < 1:
        raise top.wrong("n_action_steps", "at least 1")
    if not all(isinstance(mode, str) for mode in top.inner("normalization_mapping").values.values()):
        raise top.wrong("normalization_mapping", "kinds of features to names of modes")
    _vlm_name(top)


def _old_around(top: Fields, stats: Stats) -> Around:
    return Around(
        names={},
        max_tokens=top.whole("tokenizer_max_length", 48),
        tokenizer_name=_vlm_name(top),
        modes=dict(top.inner("normalization_mapping").values) or MODES,
        eps=1e-8,
        before=stats,
        after=stats,
    )


def _vlm_name(top: Fields) -> str:
    return model_name(top, "vlm_model_name", VLM)


def _at_most(top: Fields, name: str, default: int, most: int) -> int:
    if (value := top.whole(name, default)) > most:
        raise top.wrong(name, f"at most {most}")
    return value


def _read_model(folder: Path, top: Fields, around: Around) -> tuple[VLAConfig, InstructionTokenizer]:
    place, words = folder / OWN_VLM, folder / "tokenizer.json"
    if not place.exists():
        try:
            named = find_model(_vlm_name(top), weights=False)
            place = named / "config.json"
            same = around.tokenizer_name == _vlm_name(top)
            words = (named if same else find_model(around.tokenizer_name, weights=False)) / "tokenizer.json"
        except CheckpointError as error:
            raise CheckpointError(f"{top.source} needs the VLM that it names: {error}") from error
    text = read_words(words)
    with consistent(top.source):
        cfg = _vla_config(top, read_object(place), place, text)
    return cfg, InstructionTokenizer(text, around.max_tokens)


def _vla_config(top: Fields, released: Mapping[str, Any], place: Path, words: str) -> VLAConfig:
    vlm = vlm_config(released, place)
    kept = top.whole("num_vlm_layers", 16)
    num_layers = min(kept, vlm.decoder.num_layers) if kept > 0 else vlm.decoder.num_layers
    decoder = replace(vlm.decoder, num_layers=num_layers, rope_theta=ROPE_THETA)
    empty = _at_most(top, "empty_cameras", 0, 16)
    start: tuple[int, ...] = ()
    if top.truth("add_image_special_tokens", False):
        ids = ChatTokenizer(words).id
        start = ids("<fake_token_around_image>"), ids("<global-img>")
    return VLAConfig(
        vlm=replace(vlm, decoder=decoder),
        expert=_expert_config(top, decoder.width, num_layers),
        state_dim=top.whole("max_state_dim", 32),
        action_dim=top.whole("max_action_dim", 32),
        chunk=_at_most(top, "chunk_size", 50, 4096),
        num_steps=_at_most(top, "num_steps", 10, 1000),
        min_period=top.real("min_period", 4e-3),
        max_period=top.real("max_period", 4.0),
        image_start=start,
        image_end=start[:1],
        empty_images=empty if start else 0,
    )


def _expert_config(top: Fields, vlm_width: int, vlm_layers: int) -> ExpertConfig:
    mode, every = top.values.get("attention_mode", "cross_attn"), top.whole("self_attn_every_n_layers", 2)
    if mode not in ("cross_attn", "self_attn"):
        raise top.wrong("attention_mode", "cross_attn or self_attn")
    width = int(vlm_width * top.real("expert_width_multiplier", 0.75))
    layers = top.whole("num_expert_layers", -1)
    mixed: Literal["interleaved", "cross"] = "interleaved" if every > 0 else "cross"
    return ExpertConfig(
        width=width,
        mlp_dim=_mlp_dim(width),
        num_layers=layers if layers > 0 else vlm_layers,
        attention="self" if mode == "self_attn" else mixed,
        self_attn_every=max(1, every),
    )


def _mlp_dim(width: int) -> int:
    """Two thirds of four times the width, up to a multiple of 256."""
    return -(4 * (2 * width // 3) // -256) * 256


def _read_pipeline(top: Fields, around: Around, tokenizer: InstructionTokenizer, asked: Asked) -> Pipeline:
    features = {**top.inner("input_features").values, **top.inner("output_features").values}
    before, after = (_chosen(top, one, asked.stats) for one in (around.before, around.after))
    if around.modes.get("VISUAL", "IDENTITY") != "IDENTITY":
        raise CheckpointError(
            f"{top.source}: pictures are normalised by {reprlib.repr(around.modes['VISUAL'])}, and a SmolVLA "
            "sees them as they are (IDENTITY): run it with lerobot"
        )

    theirs = asked.stats is None or isinstance(asked.stats, str)
    source = str(Path(top.source).parent) if theirs else asked.source or "what stats= names"

    def normal(key: str, kind: str, given: Stats) -> Any:
        mode = around.modes.get(kind)
        width = asked.widths[key] if asked.widths else _width(top, features, key)
        require_mode(mode, key, top.source)
        return scale(mode, given, key, width, around.eps, source)

    keys = [key for key, one in features.items() if isinstance(one, dict) and one.get("type") == "VISUAL"]
    cameras = tuple(short(key) for key in keys if not short(key).startswith(EMPTY))
    if len({*cameras}) < len(cameras) or not cameras:
        raise top.wrong("input_features", "at least one picture, and each of another name")
    side = top.values.get("resize_imgs_with_padding", [512, 512])
    if not isinstance(side, list) or len(side) != 2 or side[0] != side[1] or type(side[0]) is not int:
        raise top.wrong("resize_imgs_with_padding", "the side of the vision tower's picture, twice")
    return Pipeline(
        cameras=cameras,
        image=Letterbox(size=side[0]),
        state=normal(STATE, "STATE", before),
        action=normal(ACTION, "ACTION", after),
        tokenizer=tokenizer,
        hz=None,
        state_dim=top.whole("max_state_dim", 32),
        action_dim=top.whole("max_action_dim", 32),
        aloha=top.truth("adapt_to_pi_aloha", False),
        lerobot={**top.values, WORDS: around.tokenizer_name, NAMES: dict(around.names)},
    )


def _chosen(top: Fields, found: Stats, stats: Stats | str | None) -> Stats:
    if not isinstance(stats, str):
        return found if stats is None else stats
    if not (chosen := choose(found, stats)):
        raise MissingStats(
            f"stats={stats!r} is no dataset here, and no set of statistics in {Path(top.source).parent}, "
            f"which holds {sorted(found)}: name one of these, or the folder of a LeRobot dataset"
        )
    return chosen


def _width(top: Fields, features: Mapping[str, Any], key: str) -> int:
    shape = features[key].get("shape") if isinstance(features.get(key), dict) else None
    if not isinstance(shape, list) or len(shape) != 1 or type(shape[0]) is not int or shape[0] < 1:
        raise top.wrong(
            "input_features" if key == STATE else "output_features", f"{key!r} of one size, among others"
        )
    return shape[0]
