"""SmolVLA as lerobot saves it: the released names of its tensors."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from tailorbird.checkpoint.files import Stored
from tailorbird.checkpoint.fill import fill, on_meta
from tailorbird.checkpoint.smolvlm import decoder_block_rules, gated_rules, vlm_rules
from tailorbird.checkpoint.table import Rule, affine, each, inside, same
from tailorbird.errors import CheckpointError
from tailorbird.model.config import VLAConfig
from tailorbird.model.int8 import may_be_int8, shrink
from tailorbird.model.vla import VLA


def load_vla(
    cfg: VLAConfig,
    source: Path,
    stored: Mapping[str, Stored],
    rules: Sequence[Rule],
    *,
    device: str,
    dtype: torch.dtype | None,
) -> VLA:
    """A VLA with the weights of a file, narrowed to `dtype` one by one: memory never holds wider ones too.

    `dtype` None, for rules that change no name, leaves each as it is stored. Errors are those of `fill`.
    """
    num_layers = cfg.vlm.vision.num_layers + cfg.vlm.decoder.num_layers + cfg.expert.num_layers
    model = on_meta(lambda: VLA(cfg), num_layers, stored, source)
    narrow = [name.removesuffix(".weight") for name, one in stored.items() if one.dtype == torch.int8]
    try:
        if wrong := [name for name in narrow if not may_be_int8(name)]:
            raise TypeError(f"{wrong[0]} is no layer that may be")
        shrink(model, narrow)
    except (AttributeError, TypeError) as error:
        raise CheckpointError(f"{source} has int8 weights where the model has no layer: {error}") from error
    if dtype is None:
        kinds = {name: one.dtype for name, one in stored.items()}
    else:
        kinds = {name: value.dtype for name, value in model.narrow(dtype).state_dict().items()}
    fill(model, source, stored, rules, device=device, dtype=kinds)
    return model


def vla_rules(cfg: VLAConfig) -> list[Rule]:
    """The whole table: released SmolVLA names to those of `VLA`.

    lerobot truncates the language model but keeps its head, which acting never reads: so does `VLA`.
    """
    both = "model.vlm_with_expert."
    return [
        *inside(vlm_rules(cfg.vlm), both + "vlm.", "vlm."),
        *inside(expert_rules(cfg), both + "lm_expert.", "expert."),
        *affine("model.state_proj", "state_in"),
        *affine("model.action_in_proj", "action_in"),
        *affine("model.action_time_mlp_in", "time_in"),
        *affine("model.action_time_mlp_out", "time_out"),
        *affine("model.action_out_proj", "action_out"),
    ]


def expert_rules(cfg: VLAConfig) -> list[Rule]:
    """Layers that only read the prefix keep q, k and v apart: k and v come from the decoder's channels."""
    layers = range(cfg.expert.num_layers)
    cross = [layer for layer in layers if cfg.expert.is_cross(layer)]
    joint = [layer for layer in layers if layer not in cross]
    return [
        *each(joint, inside(decoder_block_rules(cfg.vlm.decoder), "layers.*.", "blocks.*.")),
        *each(cross, inside(cross_block_rules(), "layers.*.", "blocks.*.")),
        same("norm.weight", "norm.weight"),
    ]


def cross_block_rules() -> list[Rule]:
    return [
        *gated_rules(),
        same("self_attn.q_proj.weight", "attn.query.weight"),
        same("self_attn.k_proj.weight", "attn.key.weight"),
        same("self_attn.v_proj.weight", "attn.value.weight"),
    ]
