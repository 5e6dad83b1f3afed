"""A policy as a folder: config.json, model.safetensors, tokenizer.json. Nothing else is needed to act."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tailorbird.checkpoint.settings import from_json, to_json
from tailorbird.errors import CheckpointError, TailorbirdError
from tailorbird.model.build import build_model
from tailorbird.model.config import VLAConfig
from tailorbird.model.vla import VLA
from tailorbird.processing.image import ImageSpec
from tailorbird.processing.normalize import Normalizer
from tailorbird.processing.pipeline import Pipeline
from tailorbird.processing.text import InstructionTokenizer
from tailorbird.provenance import commit, versions
from tailorbird.storage import read_json

FORMAT = 1
T = TypeVar("T")
POLICY_FILES = ("config.json", "model.safetensors", "tokenizer.json")


def settings_of(cfg: VLAConfig, pipeline: Pipeline) -> dict[str, Any]:
    """Model and pipeline as config.json has them; the tokenizer is a file of its own."""
    return {
        "model": to_json(cfg),
        "pipeline": {
            "cameras": list(pipeline.cameras),
            "image": to_json(pipeline.image),
            "state": to_json(pipeline.state),
            "action": to_json(pipeline.action),
            "max_tokens": pipeline.tokenizer.max_tokens,
            "hz": pipeline.hz,
        },
    }


def write_policy(folder: Path, weights: Mapping[str, Tensor], cfg: VLAConfig, pipeline: Pipeline) -> None:
    """Write the three files into an existing folder; `storage.new_folder` makes it all or nothing."""
    made_by = {"commit": commit(), "versions": versions()}
    config = {"format": FORMAT, **settings_of(cfg, pipeline), "made_by": made_by}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "tokenizer.json").write_text(pipeline.tokenizer.json, encoding="utf-8")
    write_tensors(folder / "model.safetensors", weights)


def disagreements(cfg: VLAConfig, pipeline: Pipeline) -> list[str]:
    """Where a model and a pipeline do not fit each other, in words."""
    pairs = {
        "pictures, px": (cfg.vlm.vision.image_size, pipeline.image.size),
        "state values": (cfg.state_dim, pipeline.state.width),
        "action values": (cfg.action_dim, pipeline.action.width),
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
    digest = hashlib.sha256()
    for name in POLICY_FILES:
        if not (folder / name).exists():
            raise CheckpointError(f"{folder} holds no policy: {name} is missing")
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def read_policy(folder: Path, device: str = "cpu") -> tuple[VLA, Pipeline]:
    """Build the model on the meta device and give it the weights of the folder.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    try:
        config = read_json(folder / "config.json")
        if config.get("format") != FORMAT:
            raise CheckpointError(
                f"{folder}/config.json has policy format {config.get('format')!r}, this version reads "
                f"{FORMAT}: save the policy again, or use the version that saved it"
            )
        cfg = from_json(VLAConfig, config["model"], f"{folder}/config.json: model")
        part = config["pipeline"]

        def read(kind: type[T], name: str) -> T:
            return from_json(kind, part[name], f"{folder}/config.json: {name}")

        pipeline = Pipeline(
            cameras=read(tuple[str, ...], "cameras"),
            image=read(ImageSpec, "image"),
            state=read(Normalizer, "state"),
            action=read(Normalizer, "action"),
            tokenizer=InstructionTokenizer(
                (folder / "tokenizer.json").read_text(encoding="utf-8"), read(int, "max_tokens")
            ),
            hz=read(float, "hz"),
        )
    except CheckpointError:
        raise
    except (TailorbirdError, OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{folder} is no policy that can be loaded: {type(error).__name__}: {error}. "
            "Save or fetch it again"
        ) from error
    if wrong := disagreements(cfg, pipeline):
        raise CheckpointError(
            f"{folder}/config.json: model and pipeline differ in {'; '.join(wrong)}. Save or fetch it again"
        )
    model = build_model(cfg, "meta")
    assert isinstance(model, VLA)
    load_weights(model, read_tensors(folder / "model.safetensors", device), folder / "model.safetensors")
    return model, pipeline


def read_tensors(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    try:
        return load_file(path, device=device)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: save or fetch the checkpoint again") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): save or fetch the checkpoint again") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file. Where the disk refuses, the error is the system's own, with its number."""
    try:
        save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    except SafetensorError as error:  # the library keeps the number in the text only
        refusal = re.search(r"(?:os error|code:) (\d+)", str(error))
        if refusal is None:
            raise
        number = int(refusal[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Give a model, possibly on the meta device, exactly these weights.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape.
    """
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if expected.keys() != found.keys():
        missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
        raise CheckpointError(
            f"{source} lacks {len(missing)} tensors {missing[:3]} and has {len(unknown)} unknown ones "
            f"{unknown[:3]}: it belongs to a model of another size or kind"
        )
    for name, shape in expected.items():
        if shape != found[name]:
            raise CheckpointError(
                f"{source}: {name} has shape {found[name]}, the model needs {shape}: it belongs to a model "
                "of another size. Use the config.json that was saved with it"
            )
    on_meta = any(value.is_meta for value in model.state_dict().values())
    if on_meta:  # sums round by alignment, and a mapped file has none: act as the model that was saved
        weights = {name: value.clone() if value.data_ptr() % 64 else value for name, value in weights.items()}
    model.load_state_dict(dict(weights), assign=on_meta)
