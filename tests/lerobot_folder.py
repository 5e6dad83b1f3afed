"""A policy in lerobot's layout that a test can afford, made without lerobot."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from released import CFG, words
from tailorbird.checkpoint.policy import write_policy
from tailorbird.model.config import ExpertConfig, VLAConfig
from tailorbird.model.init import initialise
from tailorbird.model.vla import VLA
from tailorbird.processing.image import Letterbox
from tailorbird.processing.normalize import Normalizer, RangeNormalizer
from tailorbird.processing.pipeline import Pipeline
from tailorbird.processing.text import InstructionTokenizer
from tailorbird.storage import new_folder

MODEL = VLAConfig(
    vlm=replace(CFG, decoder=replace(CFG.decoder, num_layers=2, rope_theta=10_000.0)),
    expert=ExpertConfig(width=22, mlp_dim=256, num_layers=2),
    state_dim=9,
    action_dim=11,
    chunk=7,
)
CONFIG = {
    "type": "smolvla",
    "input_features": {
        "observation.state": {"type": "STATE", "shape": [5]},
        "observation.images.top": {"type": "VISUAL", "shape": [3, 20, 30]},
        "observation.image": {"type": "VISUAL", "shape": [3, 24, 32]},
        "observation.images.empty_camera_0": {"type": "VISUAL", "shape": [3, 480, 640]},
    },
    "output_features": {"action": {"type": "ACTION", "shape": [4]}},
    "n_action_steps": 50,
    "vlm_model_name": "somebody/vlm",
    "optimizer_lr": 1e-4,
}
STATE = Normalizer(mean=(0.0, 1.0, 2.0, 3.0, 4.0), std=(1.0, 2.0, 3.0, 4.0, 0.0))
ACTION = RangeNormalizer(low=(0.0, -1.0, -2.0, -3.0), high=(1.0, 2.0, 3.0, 4.0))


def make_pipeline(**changes: Any) -> Pipeline:
    return Pipeline(
        **{
            "cameras": ("top", "image"),
            "image": Letterbox(size=37),
            "state": STATE,
            "action": ACTION,
            "tokenizer": InstructionTokenizer(words(), 24),
            "hz": 30.0,
            "state_dim": 9,
            "action_dim": 11,
            "lerobot": CONFIG,
            **changes,
        }
    )


def write_folder(folder: Path, **changes: Any) -> Path:
    """changes: of the pipeline."""
    model = VLA(MODEL)
    initialise(model, 0)
    with new_folder(folder) as new:
        write_policy(new, model.state_dict(), MODEL, make_pipeline(**changes))
    return folder
