"""A SmolVLM as a folder in the hub's layout: any release is read, and transformers reads what is written."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tailorbird.checkpoint.files import find_weights, list_tensors, write_shards
from tailorbird.checkpoint.fill import fill, on_meta, without_weights
from tailorbird.checkpoint.folder import read_end_ids, read_object
from tailorbird.checkpoint.processor import processor_files, read_processor
from tailorbird.checkpoint.released import released_config, vlm_config
from tailorbird.checkpoint.smolvlm import vlm_rules
from tailorbird.checkpoint.table import revert
from tailorbird.errors import CheckpointError
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
    processor = read_processor(folder, cfg)
    end_ids = read_end_ids(folder, config.get("text_config") or {}, cfg.decoder.vocab, required=True)
    model = load_model(folder, cfg, device=device, dtype=dtype)
    return VLMFolder(model=model, processor=processor, end_ids=end_ids)


def read_outline(folder: Path) -> VLMFolder:
    """What `read_vlm` reads, without the weights, which may be absent: the model is on the meta device.

    Raises:
        CheckpointError: as `read_vlm`.
    """
    cfg = vlm_config(read_object(folder / "config.json"), folder / "config.json")
    with without_weights():
        model = VLM(cfg)
    return VLMFolder(model=model, processor=read_processor(folder, cfg), end_ids=frozenset())


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
        ConfigError: the dtype is no float.
    """
    source = find_weights(folder)
    stored = list_tensors(source)
    model = on_meta(lambda: VLM(cfg), cfg.vision.num_layers + cfg.decoder.num_layers, stored, source)
    fill(model, source, stored, vlm_rules(cfg), device=device, dtype=dtype)
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
