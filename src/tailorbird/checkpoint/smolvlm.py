"""SmolVLM and SmolVLM2: the released names of their tensors, which Idefics3 shares."""

from tailorbird.checkpoint.table import Rule, affine, drop, each, inside, same, stack
from tailorbird.model.config import DecoderConfig, VisionConfig, VLMConfig


def vlm_rules(cfg: VLMConfig) -> list[Rule]:
    """The whole table: released SmolVLM names to those of `VLM`."""
    vision, text = "model.vision_model.", "model.text_model."
    return [
        *affine(vision + "embeddings.patch_embedding", "vision.patches"),
        same(vision + "embeddings.position_embedding.weight", "vision.positions.weight"),
        *each(
            range(cfg.vision.num_layers),
            inside(vision_block_rules(cfg.vision), vision + "encoder.layers.*.", "vision.blocks.*."),
        ),
        *affine(vision + "post_layernorm", "vision.norm"),
        same("model.connector.modality_projection.proj.weight", "connector.proj.weight"),
        same(text + "embed_tokens.weight", "decoder.embed.weight"),
        *each(
            range(cfg.decoder.num_layers),
            inside(decoder_block_rules(cfg.decoder), text + "layers.*.", "decoder.blocks.*."),
        ),
        same(text + "norm.weight", "decoder.norm.weight"),
        # A file of a tied model has no head, a model in memory names the embedding a second time.
        drop("lm_head.weight", why="the head is tied to the embedding", repeats=text + "embed_tokens.weight")
        if cfg.decoder.tied
        else same("lm_head.weight", "head.weight"),
    ]


def vision_block_rules(cfg: VisionConfig) -> list[Rule]:
    return [
        *affine("layer_norm1", "norm_1"),
        *(
            stack(
                *(f"self_attn.{p}_proj.{part}" for p in "qkv"), ours=f"attn.qkv.{part}", rows=3 * (cfg.width,)
            )
            for part in ("weight", "bias")
        ),
        *affine("self_attn.out_proj", "attn.out"),
        *affine("layer_norm2", "norm_2"),
        *affine("mlp.fc1", "up"),
        *affine("mlp.fc2", "down"),
    ]


def decoder_block_rules(cfg: DecoderConfig) -> list[Rule]:
    """One block whose attention reads its own tokens: of the language model, or of the action expert."""
    q, kv = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
    return [
        *gated_rules(),
        stack(*(f"self_attn.{p}_proj.weight" for p in "qkv"), ours="attn.qkv.weight", rows=(q, kv, kv)),
    ]


def gated_rules() -> list[Rule]:
    """What blocks have in common whatever they attend to: norms, attention output, gated MLP."""
    return [
        same("input_layernorm.weight", "norm_1.weight"),
        same("self_attn.o_proj.weight", "attn.out.weight"),
        same("post_attention_layernorm.weight", "norm_2.weight"),
        *(same(f"mlp.{part}_proj.weight", f"mlp.{part}.weight") for part in ("gate", "up", "down")),
    ]
