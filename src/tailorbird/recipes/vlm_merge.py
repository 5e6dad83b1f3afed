"""Put somebody's low-rank updates into the weights of a model."""

from pathlib import Path

from tailorbird.checkpoint.hub import find_model
from tailorbird.checkpoint.peft import read_adapter
from tailorbird.checkpoint.smolvlm import vlm_rules
from tailorbird.checkpoint.vlm import read_vlm, write_vlm
from tailorbird.errors import ConfigError
from tailorbird.train.lora import attach, merged_weights


def merge_adapter(model: str | Path, adapter: Path, out: Path) -> int:
    """Write the model with the updates merged, in the dtype of its weights. Returns how many layers changed.

    Raises:
        CheckpointError: one of both is missing or damaged, or they do not belong together.
        ConfigError: `out` is the folder of the model or of the adapter, or holds something else.
    """
    folder = find_model(model)
    if out.resolve() in (folder.resolve(), adapter.resolve(), *adapter.resolve().parents):
        raise ConfigError(f"{out} would replace what it is made from: choose another --out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not empty: choose another --out, or delete it")
    read = read_vlm(folder)
    found, dtype = read_adapter(adapter, vlm_rules(read.model.cfg)), read.model.decoder.dtype
    read.model.float()
    attach(read.model, found)
    weights = {name: value.to(dtype) for name, value in merged_weights(read.model).items()}
    write_vlm(out, weights, read.model.cfg, read.processor, end_ids=read.end_ids)
    return len({place.layer for place in found.updates}) + len(found.whole)
