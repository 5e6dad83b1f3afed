"""A policy as a folder: config.json, model.safetensors, tokenizer.json. Nothing else is needed to act."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from tailorbird.checkpoint.files import load_weights, read_tensors, write_tensors
from tailorbird.checkpoint.fill import on_meta
from tailorbird.checkpoint.settings import from_json, to_json
from tailorbird.errors import CheckpointError, TailorbirdError
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
    source = folder / "model.safetensors"
    weights = read_tensors(source, device)
    num_layers = cfg.vlm.vision.num_layers + cfg.vlm.decoder.num_layers + cfg.expert.num_layers
    model = on_meta(lambda: VLA(cfg), num_layers, weights, source)
    load_weights(model, weights, source)
    return model, pipeline
