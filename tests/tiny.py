"""A VLA that a test can afford; no two of its sizes are equal by accident."""

from tailorbird.model.config import DecoderConfig, ExpertConfig, VisionConfig, VLAConfig, VLMConfig

TINY_VLA = VLAConfig(
    vlm=VLMConfig(
        vision=VisionConfig(
            image_size=16, patch_size=4, width=10, num_layers=1, num_heads=2, mlp_dim=14, stem=(6,)
        ),
        decoder=DecoderConfig(
            width=22, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=26, vocab=300, tied=True
        ),
        shuffle=2,
        image_token_id=1,
    ),
    expert=ExpertConfig(width=18, mlp_dim=30, num_layers=2),
    state_dim=5,
    action_dim=3,
    chunk=7,
    num_steps=4,
)
