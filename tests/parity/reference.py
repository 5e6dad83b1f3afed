"""The reference implementation at a size that a test can afford, with random weights."""

import torch
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

from tailorbird.model.config import DecoderConfig, VisionConfig, VLMConfig

VISION = VisionConfig(  # 6 x 6 patches and a rim of one pixel that nothing reads
    image_size=37, patch_size=6, width=24, num_layers=2, num_heads=3, mlp_dim=40, norm_eps=0.02
)


def config(*, tied: bool, shuffle: int) -> VLMConfig:
    decoder = DecoderConfig(  # the queries are wider than the model, the epsilon large enough to matter
        width=30,
        num_layers=3,
        num_heads=6,
        num_kv_heads=2,
        head_dim=8,
        mlp_dim=44,
        vocab=101,
        max_positions=64,
        rope_theta=5000.0,
        norm_eps=0.03,
        tied=tied,
    )
    return VLMConfig(vision=VISION, decoder=decoder, shuffle=shuffle, image_token_id=97)


def build_reference(cfg: VLMConfig, seed: int) -> SmolVLMForConditionalGeneration:
    """All weights are random and large, norms and biases too: at its own start it hardly depends on them."""
    vision, text = cfg.vision, cfg.decoder
    reference = SmolVLMForConditionalGeneration(
        SmolVLMConfig(
            vision_config={
                "hidden_size": vision.width,
                "intermediate_size": vision.mlp_dim,
                "num_hidden_layers": vision.num_layers,
                "num_attention_heads": vision.num_heads,
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "layer_norm_eps": vision.norm_eps,
            },
            text_config={
                "model_type": "llama",
                "hidden_size": text.width,
                "intermediate_size": text.mlp_dim,
                "num_hidden_layers": text.num_layers,
                "num_attention_heads": text.num_heads,
                "num_key_value_heads": text.num_kv_heads,
                "head_dim": text.head_dim,
                "vocab_size": text.vocab,
                "max_position_embeddings": text.max_positions,
                "rms_norm_eps": text.norm_eps,
                "rope_parameters": {"rope_type": "default", "rope_theta": text.rope_theta},
                "tie_word_embeddings": text.tied,
                "pad_token_id": 2,
                "bos_token_id": 0,
                "eos_token_id": 1,
            },
            scale_factor=cfg.shuffle,
            image_token_id=cfg.image_token_id,
            tie_word_embeddings=text.tied,
        )
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in reference.named_parameters():
            std = value[0].numel() ** -0.5 if value.dim() > 1 else 0.2
            value.normal_(
                mean=float("norm" in name and name.endswith("weight")), std=std, generator=generator
            )
    return reference
