"""SmolVLA as lerobot saves it: the released names of its tensors."""

from tailorbird.checkpoint.smolvlm import decoder_block_rules, gated_rules, vlm_rules
from tailorbird.checkpoint.table import Rule, affine, each, inside, same
from tailorbird.model.config import VLAConfig


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
