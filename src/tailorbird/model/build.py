"""The one place that turns a configuration into a model."""

from typing import assert_never

import torch

from tailorbird.model.config import DecoderConfig, ModelConfig, VLAConfig, VLMConfig
from tailorbird.model.lm import LM
from tailorbird.model.vla import VLA
from tailorbird.model.vlm import VLM


def build_model(cfg: ModelConfig, device: str = "cpu") -> LM | VLM | VLA:
    """The one list of models that exist.

    On "meta" nothing is allocated; elsewhere the weights are PyTorch's defaults.
    """
    with torch.device(device):
        match cfg:
            case DecoderConfig():
                return LM(cfg)
            case VLMConfig():
                return VLM(cfg)
            case VLAConfig():
                return VLA(cfg)
            case _:
                assert_never(cfg)
