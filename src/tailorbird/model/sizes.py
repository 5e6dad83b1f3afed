"""The sizes that exist. Importable without torch."""

from dataclasses import replace

from tailorbird.model.config import (
    DecoderConfig,
    ExpertConfig,
    ModelConfig,
    VisionConfig,
    VLAConfig,
    VLMConfig,
)

SMOLVLM2_256M = VLMConfig()
SMOLVLM2_500M = VLMConfig(
    decoder=DecoderConfig(width=960, num_layers=32, num_heads=15, num_kv_heads=5, mlp_dim=2560)
)
SMOLVLM2_2B = VLMConfig(
    vision=VisionConfig(image_size=384, patch_size=14, width=1152, num_layers=27, num_heads=16, mlp_dim=4304),
    decoder=DecoderConfig(
        width=2048, num_layers=24, num_heads=32, num_kv_heads=32, mlp_dim=8192, rope_theta=130_000.0
    ),
    shuffle=3,
)
SMOLVLM_V1 = VLMConfig(
    vision=SMOLVLM2_2B.vision,
    decoder=replace(SMOLVLM2_2B.decoder, vocab=49155, rope_theta=273_768.0, max_positions=16384),
    shuffle=3,
    image_token_id=49153,
)
SMOLVLA_BASE = VLAConfig(  # the first half of the 500M's layers, turned by its own rotary base
    vlm=replace(SMOLVLM2_500M, decoder=replace(SMOLVLM2_500M.decoder, num_layers=16, rope_theta=10_000.0))
)
TINY = VLAConfig(  # learns five tasks in minutes on two cores: make demo
    vlm=VLMConfig(
        vision=VisionConfig(
            image_size=96, patch_size=16, width=128, num_layers=1, num_heads=4, mlp_dim=512, stem=(16, 32, 64)
        ),
        decoder=DecoderConfig(
            width=128,
            num_layers=4,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
            mlp_dim=320,
            vocab=512,
            rope_theta=10_000.0,
            tied=True,
        ),
        shuffle=2,
        image_token_id=1,
    ),
    expert=ExpertConfig(width=128, mlp_dim=320, num_layers=4),
    state_dim=4,
    action_dim=4,
    chunk=8,
)
SIZES: dict[str, ModelConfig] = {
    "smolvlm2-256m": SMOLVLM2_256M,
    "smolvlm2-500m": SMOLVLM2_500M,
    "smolvlm2-2.2b": SMOLVLM2_2B,
    "smolvlm-instruct": SMOLVLM_V1,
    "smolvla-base": SMOLVLA_BASE,
    "tiny": TINY,
}
