"""A SmolVLM as a folder in the hub's layout: any release is read, and transformers reads what is written."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tailorbird.checkpoint.files import TensorReader, find_weights, list_tensors, require_fit, write_shards
from tailorbird.checkpoint.processor import processor_files, read_object, read_optional, read_processor
from tailorbird.checkpoint.released import released_config, vlm_config
from tailorbird.checkpoint.smolvlm import vlm_rules
from tailorbird.checkpoint.table import differing, plan, revert
from tailorbird.errors import CheckpointError, ConfigError
from tailorbird.model.build import build_model
from tailorbird.model.config import VLMConfig
from tailorbird.model.vlm import VLM
from tailorbird.processing.processor import Processor
from tailorbird.storage import new_folder, write_json


@dataclass(frozen=True, kw_only=True)
class VLMFolder:
    """What a folder holds. end_ids: the tokens after which the model has said all."""

    model: VLM
    processor: Processor
    end_ids: frozenset[int]


def read_vlm(
    folder: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> VLMFolder:
    """Read a released folder; `dtype` None is that of its weights.

    Raises:
        CheckpointError: a file is missing or damaged, contradicts another, or is of another kind of model.
    """
    config = read_object(folder / "config.json")
    cfg = vlm_config(config, folder / "config.json")
    processor, end_ids = read_processor(folder, cfg), _end_ids(folder, config, cfg)
    model = load_model(folder, cfg, device=device, dtype=dtype)
    return VLMFolder(model=model, processor=processor, end_ids=end_ids)


def load_model(
    folder: Path,
    cfg: VLMConfig,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> VLM:
    """The model with a folder's weights. Memory grows by their size and a few MB, never by a second copy.

    Raises:
        CheckpointError: a tensor is missing, unknown, of another shape, or no float; or a file is damaged.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ConfigError(f"weights cannot be loaded as {dtype}: name a float, such as torch.bfloat16")
    source = find_weights(folder)
    stored = list_tensors(source)
    shapes = {key: one.shape for key, one in stored.items()}
    model = build_model(cfg, "meta")
    assert isinstance(model, VLM)
    reader = TensorReader(stored)
    try:
        settled = plan(shapes, vlm_rules(cfg))
        for rule in settled.repeats:
            if not reader.are_equal(rule.theirs[0], str(rule.repeats)):
                raise differing(rule)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}. Use the config.json that was saved with it") from error
    needed = settled.shapes(shapes)
    require_fit(model, needed, source)
    if dtype is None:
        dtypes = {stored[key].dtype for rule in settled.kept.values() for key in rule.theirs}
        if len(dtypes) > 1:
            raise CheckpointError(
                f"{source} mixes {', '.join(sorted(map(str, dtypes)))}: say which dtype to load"
            )
        (dtype,) = dtypes
    weights: dict[str, Tensor] = {}
    for name, rule in settled.kept.items():
        weights[name] = torch.empty(needed[name], dtype=dtype, device=device)
        parts = weights[name].split(rule.rows) if rule.rows else [weights[name]]
        for key, part in zip(rule.theirs, parts, strict=True):
            reader.copy(key, part)
    model.load_state_dict(weights, assign=True)
    return model


def write_vlm(
    folder: Path,
    weights: Mapping[str, Tensor],
    cfg: VLMConfig,
    processor: Processor,
    *,
    end_ids: frozenset[int],
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Write a folder in the released layout, all or nothing. `weights` is the state_dict of a VLM.

    Raises:
        CheckpointError: the weights are not those of `cfg`, or the processor does not fit it.
    """
    if (processor.tiles.tile, processor.tokens_per_tile) != (cfg.vision.image_size, cfg.tokens_per_image):
        raise CheckpointError(
            f"cannot write {folder}: the processor makes tiles of {processor.tiles.tile} px and "
            f"{processor.tokens_per_tile} tokens, the model reads {cfg.vision.image_size} px and "
            f"{cfg.tokens_per_image}: give the processor that belongs to the model"
        )
    if not end_ids or not all(0 <= one < cfg.decoder.vocab for one in end_ids):
        raise CheckpointError(
            f"cannot write {folder}: {sorted(end_ids)} end nothing in a vocabulary of {cfg.decoder.vocab}: "
            "give those of the tokens that end a turn"
        )
    theirs = revert(weights, vlm_rules(cfg))
    dtypes = {str(value.dtype).removeprefix("torch.") for value in theirs.values()}
    if len(dtypes) > 1:
        raise CheckpointError(f"cannot write {folder}: the weights mix {sorted(dtypes)}, convert them to one")
    config = released_config(cfg, pad_id=processor.pad_id, end_ids=end_ids, dtype=dtypes.pop())
    files = {
        "config.json": config,
        "generation_config.json": {
            "eos_token_id": config["text_config"]["eos_token_id"],
            "pad_token_id": processor.pad_id,
        },
        **processor_files(processor, cfg),
    }
    with new_folder(folder) as temporary:
        for name, content in files.items():
            if isinstance(content, str):
                (temporary / name).write_text(content, encoding="utf-8")
            else:
                write_json(temporary / name, content)
        write_shards(temporary, theirs, shard_bytes)


def _end_ids(folder: Path, config: Mapping[str, Any], cfg: VLMConfig) -> frozenset[int]:
    """From generation_config.json, else from config.json.

    Only eos_token_id is read: bos_token_id is 0 in the releases, which is <|endoftext|> and begins nothing.
    """
    path = folder / "generation_config.json"
    value = read_optional(path).get("eos_token_id")
    if value is None:
        path = folder / "config.json"
        value = (config.get("text_config") or {}).get("eos_token_id")
    ids = value if isinstance(value, list) else [value]
    if not ids or not all(type(one) is int and 0 <= one < cfg.decoder.vocab for one in ids):
        raise CheckpointError(
            f"{path}: eos_token_id is {value!r}, which names none of {cfg.decoder.vocab} tokens, so no reply "
            "would end: set it to the id of the token that ends a turn"
        )
    return frozenset(ids)
