"""A policy as a folder, in Tailorbird's layout or in lerobot's. Nothing else is needed to act.

Tailorbird's own is config.json, model.safetensors, tokenizer.json.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from tailorbird.checkpoint.files import FLOATS, INT8, list_tensors, write_tensors
from tailorbird.checkpoint.folder import read_optional
from tailorbird.checkpoint.lerobot import OWN_VLM, Asked, read_lerobot, require_config
from tailorbird.checkpoint.lerobot_steps import ACTION, STATE, Stats, mode_of, scale
from tailorbird.checkpoint.lerobot_write import write_lerobot
from tailorbird.checkpoint.settings import from_json, to_json
from tailorbird.checkpoint.smolvla import load_vla
from tailorbird.checkpoint.table import same
from tailorbird.errors import CheckpointError, ConfigError, TailorbirdError
from tailorbird.model.config import VLAConfig
from tailorbird.model.vla import VLA
from tailorbird.processing.image import ImageSpec, Letterbox
from tailorbird.processing.normalize import EPS, Identity, Normalizer, RangeNormalizer
from tailorbird.processing.pipeline import Pipeline
from tailorbird.processing.text import InstructionTokenizer
from tailorbird.provenance import commit, versions
from tailorbird.storage import read_json

FORMAT = 1
T = TypeVar("T")
UNSAID = {"rename": {}, "absent": [], "state_dim": 0, "action_dim": 0, "aloha": False}  # in older files
BLOCK = 1 << 20  # bytes of a file in memory at once
POLICY_FILES = ("config.json", "model.safetensors", "tokenizer.json")


def settings_of(cfg: VLAConfig, pipeline: Pipeline) -> dict[str, Any]:
    """Model and pipeline as config.json has them; the tokenizer is a file of its own."""
    return {
        "model": to_json(cfg),
        "pipeline": {
            "cameras": list(pipeline.cameras),
            "rename": dict(pipeline.rename),
            "absent": list(pipeline.absent),
            "image": to_json(pipeline.image),
            "state": to_json(pipeline.state),
            "action": to_json(pipeline.action),
            "max_tokens": pipeline.tokenizer.max_tokens,
            "hz": pipeline.hz,
            "state_dim": pipeline.state_dim,
            "action_dim": pipeline.action_dim,
            "aloha": pipeline.aloha,
        },
    }


def write_policy(folder: Path, weights: Mapping[str, Tensor], cfg: VLAConfig, pipeline: Pipeline) -> None:
    """Write the files into an existing folder; `storage.new_folder` makes it all or nothing.

    In lerobot's layout if the pipeline has a configuration of it.
    """
    if pipeline.lerobot is not None:
        write_lerobot(folder, weights, cfg, pipeline)
        return
    made_by = {"commit": commit(), "versions": versions()}
    config = {"format": FORMAT, **settings_of(cfg, pipeline), "made_by": made_by}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "tokenizer.json").write_text(pipeline.tokenizer.json, encoding="utf-8")
    write_tensors(folder / "model.safetensors", weights)


def disagreements(cfg: VLAConfig, pipeline: Pipeline) -> list[str]:
    """Where a model and a pipeline do not fit each other, in words."""
    pairs = {
        "pictures, px": (cfg.vlm.vision.image_size, pipeline.image.size),
        "state values": (cfg.state_dim, pipeline.state_dim or pipeline.state.width),
        "action values": (cfg.action_dim, pipeline.action_dim or pipeline.action.width),
    }
    found = [f"{what}: {ours} and {theirs}" for what, (ours, theirs) in pairs.items() if ours != theirs]
    if pipeline.tokenizer.vocab > cfg.vlm.decoder.vocab:
        found.append(f"words: {cfg.vlm.decoder.vocab} and {pipeline.tokenizer.vocab}")
    return found


def fingerprint(folder: Path) -> str:
    """A digest of the policy's files.

    Raises:
        CheckpointError: one is missing.
    """
    names: tuple[str, ...] = POLICY_FILES
    if _is_lerobot(folder):
        found = (path.name for kind in ("json", "safetensors") for path in folder.glob(f"*.{kind}"))
        inner = [OWN_VLM] if (folder / OWN_VLM).exists() else []
        names = (*sorted(name for name in found if not name.startswith("train.")), *inner)
    digest = hashlib.sha256()
    for name in names:
        if not (folder / name).exists():
            raise CheckpointError(f"{folder} holds no policy: {name} is missing")
        with (folder / name).open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()


def _is_lerobot(folder: Path) -> bool:
    require_config(folder)
    try:
        return "type" in read_optional(folder / "config.json")
    except CheckpointError:
        return False


def read_policy(
    folder: Path, device: str = "cpu", asked: Asked | None = None, dtype: torch.dtype | None = None
) -> tuple[VLA, Pipeline]:
    """Build the model on the meta device and give it the weights of the folder, of either layout.

    They are narrowed to `dtype` while they are read; None is fp32 for a policy of lerobot, else as stored.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not fit the configuration.
        MissingStats: a policy of lerobot has no statistics for the robot's state or its actions.
        ConfigError: what is asked cannot be done with this policy.
    """
    asked = asked or Asked()
    if _is_lerobot(folder):
        model, pipeline = read_lerobot(folder, asked, device=device, dtype=dtype)
        _require_agreement(folder, model.cfg, pipeline)
        return model, pipeline
    if asked.stats is not None and (asked.widths is None or isinstance(asked.stats, str)):
        raise ConfigError(f"{folder} has statistics of its own: leave out stats=, or train on the other data")
    model, pipeline = _read_native(folder, device, dtype)
    if asked.stats is not None:
        source = asked.source or "what stats= names"
        pipeline = _rescaled(pipeline, model.cfg, asked.stats, asked.widths or {}, source)
    return model, asked.applied(pipeline, pipeline.rename)


def _rescaled(
    pipeline: Pipeline, cfg: VLAConfig, stats: Stats, widths: Mapping[str, int], source: str
) -> Pipeline:
    """The pipeline for another robot, whose values the model has room for."""
    state, action = (
        scale(mode_of(one, None), stats, key, widths[key], EPS, source)
        for key, one in ((STATE, pipeline.state), (ACTION, pipeline.action))
    )
    return replace(pipeline, state=state, action=action, state_dim=cfg.state_dim, action_dim=cfg.action_dim)


def _read_native(folder: Path, device: str, dtype: torch.dtype | None) -> tuple[VLA, Pipeline]:
    try:
        config = read_json(folder / "config.json")
        if config.get("format") != FORMAT:
            raise CheckpointError(
                f"{folder}/config.json has policy format {config.get('format')!r}, this version reads "
                f"{FORMAT}: save the policy again, or use the version that saved it"
            )
        cfg = from_json(VLAConfig, config["model"], f"{folder}/config.json: model")
        part = {**UNSAID, **config["pipeline"]}

        def read(kind: type[T], name: str) -> T:
            return from_json(kind, part[name], f"{folder}/config.json: {name}")

        pipeline = Pipeline(
            cameras=read(tuple[str, ...], "cameras"),
            rename=read(dict[str, str], "rename"),
            absent=read(tuple[str, ...], "absent"),
            image=read(ImageSpec, "image") if "crop" in part["image"] else read(Letterbox, "image"),
            state=read(_kind_of(part["state"]), "state"),
            action=read(_kind_of(part["action"]), "action"),
            tokenizer=InstructionTokenizer(
                (folder / "tokenizer.json").read_text(encoding="utf-8"), read(int, "max_tokens")
            ),
            hz=read(float, "hz") if part["hz"] is not None else None,
            state_dim=read(int, "state_dim"),
            action_dim=read(int, "action_dim"),
            aloha=read(bool, "aloha"),
        )
    except CheckpointError:
        raise
    except (TailorbirdError, OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{folder} is no policy that can be loaded: {type(error).__name__}: {error}. "
            "Save or fetch it again"
        ) from error
    _require_agreement(folder, cfg, pipeline)
    source = folder / "model.safetensors"
    stored = list_tensors(source, {**FLOATS, **INT8})
    rules = [same(name, name) for name in stored]
    return load_vla(cfg, source, stored, rules, device=device, dtype=dtype), pipeline


def _kind_of(scale: Any) -> type[Normalizer] | type[RangeNormalizer] | type[Identity]:
    """Which of the three it was, by a field that only it has."""
    if "low" in scale:
        return RangeNormalizer
    return Identity if "width" in scale else Normalizer


def _require_agreement(folder: Path, cfg: VLAConfig, pipeline: Pipeline) -> None:
    if wrong := disagreements(cfg, pipeline):
        raise CheckpointError(
            f"{folder}/config.json: model and pipeline differ in {'; '.join(wrong)}. Save or fetch it again"
        )
