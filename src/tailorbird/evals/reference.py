"""lerobot's SmolVLA, if it is installed, acting on the same observations from the same noise."""

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tailorbird.checkpoint.folder import read_object
from tailorbird.checkpoint.lerobot_steps import AFTER, BEFORE, short
from tailorbird.errors import ConfigError
from tailorbird.evals.course import Course, outputs_of
from tailorbird.processing.pipeline import Pipeline
from tailorbird.wire import Observation

DEVICE = "device_processor"
INSTALL = "pip install 'lerobot[smolvla]>=0.4.4'"


class Reference:
    """The policy of a folder in lerobot's layout as lerobot itself runs it, in fp32."""

    def __init__(self, folder: Path, pipeline: Pipeline, device: str) -> None:
        """Raises ConfigError when lerobot is not installed, or the policy is not in its layout."""
        if pipeline.lerobot is None:
            raise ConfigError(
                f"{folder} is in Tailorbird's own layout, which lerobot does not read: compare it --against "
                "fp32, or with a file"
            )
        with redirect_stdout(sys.stderr):  # it prints as it loads, and may draw in what prints too
            self.policy, self.before, self.after = _load(folder, device)
        keys = {short(key): key for key in self.policy.config.image_features}
        self.cameras = {keys[name]: i for i, name in enumerate(pipeline.seen_cameras)}

    @torch.inference_mode()
    def follow(self, seen: Sequence[Observation], noise: Tensor) -> Course:
        pictures = [list(one.images.values()) for one in seen]
        batch: dict[str, Any] = {
            "observation.state": torch.from_numpy(np.stack([one.state for one in seen])),
            "task": [one.task for one in seen],
        }
        for key, i in self.cameras.items():
            frames = torch.from_numpy(np.stack([row[i] for row in pictures]))  # (B, H, W, 3)
            batch[key] = frames.permute(0, 3, 1, 2).float() / 255  # (B, 3, H, W)
        self.policy.reset()
        with outputs_of(self.policy.model.action_out_proj) as velocities:
            inputs = self.before(batch)
            actions = self.policy.predict_action_chunk(inputs, noise=noise.to(self.policy.config.device))
        return Course(
            velocities=torch.stack(velocities), actions=self.after(actions).float().cpu(), noise=noise
        )


def _load(folder: Path, device: str) -> tuple[Any, Any, Any]:
    """The policy, what prepares its observations, and what its actions go through."""
    try:
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
        from lerobot.processor import PolicyProcessorPipeline
        from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action
    except ImportError as error:
        raise ConfigError(
            f"lerobot cannot be imported ({error}): {INSTALL}, or compare --against fp32"
        ) from None
    if not (folder / f"{BEFORE}.json").exists():
        raise ConfigError(
            f"{folder} has its statistics inside the weights, which lerobot no longer reads: load and "
            "save it here first, or compare --against fp32"
        )
    config = PreTrainedConfig.from_pretrained(folder)
    config.device, config.compile_model = device, False
    config.load_vlm_weights = False  # the policy's own weights take their place
    policy = SmolVLAPolicy.from_pretrained(folder, config=config).float().eval()
    steps = read_object(folder / f"{BEFORE}.json").get("steps", [])
    moves = any(step.get("registry_name") == DEVICE for step in steps)  # an override that fits no step fails
    on = {DEVICE: {"device": device}} if moves else {}
    before = PolicyProcessorPipeline.from_pretrained(folder, f"{BEFORE}.json", overrides=on)
    after = PolicyProcessorPipeline.from_pretrained(
        folder,
        f"{AFTER}.json",
        to_transition=policy_action_to_transition,
        to_output=transition_to_policy_action,
    )
    return policy, before, after
