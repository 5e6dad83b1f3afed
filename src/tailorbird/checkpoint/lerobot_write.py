"""A SmolVLA written as lerobot lays it out: the other half of lerobot.py."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tailorbird.checkpoint.files import write_tensors
from tailorbird.checkpoint.lerobot import MODES, NAMES, NEWER, OWN_VLM, VLM, WORDS
from tailorbird.checkpoint.lerobot_steps import (
    ACTION,
    AFTER,
    BEFORE,
    CAMERA,
    NEW_LINE,
    NORMALIZE,
    RANGES,
    RENAME,
    STATE,
    TOKENIZE,
    UNNORMALIZE,
    mode_of,
    short,
)
from tailorbird.checkpoint.released import released_config
from tailorbird.checkpoint.smolvla import vla_rules
from tailorbird.checkpoint.table import revert
from tailorbird.errors import ConfigError
from tailorbird.model.config import VLAConfig
from tailorbird.processing.normalize import EPS, Normalizer, RangeNormalizer, Scale
from tailorbird.processing.pipeline import Pipeline
from tailorbird.storage import write_json


def write_lerobot(folder: Path, weights: Mapping[str, Tensor], cfg: VLAConfig, pipeline: Pipeline) -> None:
    """All files into an existing folder; `storage.new_folder` makes it all or nothing.

    Raises ConfigError if lerobot does not have the model's solver or its views.
    """
    config = lerobot_config(cfg, pipeline)
    words = (pipeline.lerobot or {}).get(WORDS, config["vlm_model_name"])
    scales = {STATE: pipeline.state, ACTION: pipeline.action}
    write_json(folder / "config.json", config)
    write_tensors(folder / "model.safetensors", revert(weights, vla_rules(cfg)), {"format": "pt"})
    write_around(folder, config, words, _names(config, pipeline), scales)
    (folder / "tokenizer.json").write_text(pipeline.tokenizer.json, encoding="utf-8")
    (folder / OWN_VLM).parent.mkdir()
    vlm = released_config(cfg.vlm, pad_id=0, end_ids=frozenset({0}), dtype="float32")
    write_json(folder / OWN_VLM, vlm)


def _names(config: Mapping[str, Any], pipeline: Pipeline) -> dict[str, str]:
    """The processor's names as they were, less those of cameras that have others now, and with these."""
    there = {
        old: new
        for old, new in (pipeline.lerobot or {}).get(NAMES, {}).items()
        if short(new) not in pipeline.cameras or pipeline.rename.get(short(old)) == short(new)
    }
    said = {short(old): short(new) for old, new in there.items()}
    keys = {short(key): key for key in config["input_features"]}
    asked = pipeline.rename.items() - said.items()
    return there | {CAMERA + theirs: keys[ours] for theirs, ours in sorted(asked)}


def lerobot_config(cfg: VLAConfig, pipeline: Pipeline) -> dict[str, Any]:
    """config.json for a pipeline that has one of its own, as the model and the pipeline now are."""
    assert pipeline.lerobot is not None
    if cfg.solver != "euler":
        raise ConfigError(
            f"lerobot has steps of Euler only, and this policy's solver is {cfg.solver}: save it with "
            "solver='euler', and choose the other one whenever it is loaded"
        )
    if cfg.max_delay:
        raise ConfigError(
            f"lerobot cannot go on from given actions, and this policy learned to ({cfg.max_delay=}): "
            "save it in Tailorbird's own layout, replace(pipeline, lerobot=None)"
        )
    if cfg.views != "joint":
        raise ConfigError(
            f"lerobot reads cameras one after the other, and this policy pools them (views={cfg.views!r}): "
            "save it in Tailorbird's own layout, replace(pipeline, lerobot=None), or with views='joint'"
        )
    old = {key: value for key, value in pipeline.lerobot.items() if key not in {*NEWER, WORDS, NAMES}}
    inputs, modes = old.get("input_features") or {}, {**MODES, **(old.get("normalization_mapping") or {})}
    size = pipeline.image.size
    keys = {name: CAMERA + name for name in pipeline.seen_cameras} | {short(key): key for key in inputs}
    unsized = {
        "type": "VISUAL",
        "shape": [3, size, size],
    }  # lerobot never reads the sizes of a SmolVLA's pictures
    pictures = {keys[name]: inputs.get(keys[name], unsized) for name in pipeline.seen_cameras}
    return {
        **old,
        "input_features": {STATE: {"type": "STATE", "shape": [pipeline.state.width]}, **pictures},
        "output_features": {ACTION: {"type": "ACTION", "shape": [pipeline.action.width]}},
        "normalization_mapping": {
            "VISUAL": "IDENTITY",
            "STATE": mode_of(pipeline.state, modes["STATE"]),
            "ACTION": mode_of(pipeline.action, modes["ACTION"]),
        },
        "chunk_size": cfg.chunk,
        "n_action_steps": min(old.get("n_action_steps", 50), cfg.chunk),
        "max_state_dim": cfg.state_dim,
        "max_action_dim": cfg.action_dim,
        "resize_imgs_with_padding": [size, size],
        "adapt_to_pi_aloha": pipeline.aloha,
        "tokenizer_max_length": pipeline.tokenizer.max_tokens,
        "num_steps": cfg.num_steps,
        "num_vlm_layers": cfg.vlm.decoder.num_layers,
        "vlm_model_name": old.get("vlm_model_name", VLM),
    }


def write_around(
    folder: Path,
    config: Mapping[str, Any],
    tokenizer_name: str,
    rename_map: Mapping[str, str],
    scales: Mapping[str, Scale],
) -> None:
    """Both processor files and their statistics, for a config.json as it is to be written."""
    modes, features = (
        config["normalization_mapping"],
        {**config["input_features"], **config["output_features"]},
    )
    stats: dict[str, Tensor] = {}
    for key, kind in ((STATE, "STATE"), (ACTION, "ACTION")):
        match scales[key]:
            case Normalizer(mean=first, std=second):
                names = Normalizer.names
            case RangeNormalizer(low=first, high=second):
                names = RANGES[modes[kind]]
            case _:
                continue
        for name, values in zip(names, (first, second), strict=True):
            stats[f"{key}.{name}"] = torch.tensor(values)
    eps = getattr(scales[STATE], "eps", EPS)
    device = _step("device_processor", device=config.get("device") or "cpu", float_dtype=None)
    words = _step(
        TOKENIZE,
        max_length=config["tokenizer_max_length"],
        task_key="task",
        padding_side="right",
        padding=config.get("pad_language_to", "longest"),
        truncation=True,
        tokenizer_name=tokenizer_name,
    )
    normal = _step(NORMALIZE, eps=eps, features=features, norm_map=modes)
    back = _step(UNNORMALIZE, eps=eps, features=dict(config["output_features"]), norm_map=modes)
    first_steps = [_step(RENAME, rename_map=dict(rename_map)), _step("to_batch_processor"), _step(NEW_LINE)]
    steps = {
        BEFORE: [*first_steps, words, device, normal],
        AFTER: [back, {**device, "config": {"device": "cpu", "float_dtype": None}}],
    }
    for name, chain in steps.items():
        for number, step in enumerate(chain):
            if step["registry_name"] in (NORMALIZE, UNNORMALIZE):
                step["state_file"] = f"{name}_step_{number}_{step['registry_name']}.safetensors"
                write_tensors(folder / step["state_file"], stats)
        write_json(folder / f"{name}.json", {"name": name, "steps": chain})


def _step(name: str, **config: Any) -> dict[str, Any]:
    return {"registry_name": name, "config": config}
