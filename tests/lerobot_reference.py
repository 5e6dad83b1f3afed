"""lerobot's SmolVLA, imported without what it needs for robots, datasets and other policies.

Its package imports torchvision, datasets and drivers wherever one enters. Nothing of them is called when a
policy acts or computes its loss, so they are absent here: using one fails.
"""

import sys
from collections.abc import Sequence
from importlib import import_module, util
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

# before anything is absent: it looks for torchvision, and must not find it
from transformers import (  # noqa: F401
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    SmolVLMForConditionalGeneration,
)

UNUSED = (
    "accelerate",
    "datasets",
    "deepdiff",
    "serial",
    "torchvision",
    *(f"lerobot.{part}" for part in ("cameras", "datasets", "envs", "motors", "robots", "teleoperators")),
)


class Absent(ModuleType):
    """A module of which names can be imported and nothing can be used."""

    __path__ = ()

    def __getattr__(self, name: str) -> "Absent":
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self.__name__}.{name}")

    def __or__(self, other: object) -> "Absent":  # stands in annotations
        return self


class AbsentFinder(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.startswith(UNUSED) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Absent(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def _import() -> tuple[ModuleType, ModuleType, ModuleType]:
    """The modules of the model, of its configuration and of its processors."""
    spec = util.find_spec("lerobot")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    policies = ModuleType("lerobot.policies")  # its __init__ would import all policies that there are
    policies.__path__ = [str(Path(spec.submodule_search_locations[0]) / "policies")]
    sys.modules["lerobot.policies"] = policies
    finder = AbsentFinder()
    sys.meta_path.insert(0, finder)
    try:
        parts = ("modeling_smolvla", "configuration_smolvla", "processor_smolvla")
        model, config, processor = (import_module(f"lerobot.policies.smolvla.{part}") for part in parts)
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if isinstance(sys.modules[name], Absent)]:
            del sys.modules[name]
    import_module("lerobot.policies.smolvla.smolvlm_with_expert").AutoProcessor = WordsOnly
    return model, config, processor


class WordsOnly:
    """Instead of the VLM's processor, whose part for videos needs torchvision. lerobot asks it for ids."""

    def __init__(self, folder: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    @classmethod
    def from_pretrained(cls, folder: str) -> "WordsOnly":
        return cls(folder)


MODEL, CONFIG, PROCESSOR = _import()


def build_policy(
    vlm: Path,
    *,
    cameras: Sequence[str] = ("camera1", "camera2"),
    state: int = 5,
    action: int = 4,
    seed: int = 0,
    **settings: Any,
) -> Any:
    """A SmolVLAPolicy in fp32 with random weights, large enough that everything matters.

    vlm: a VLM's folder in the hub's layout, whose sizes count and whose weights do not.
    settings: fields of lerobot's SmolVLAConfig.
    """
    from lerobot.configs.types import FeatureType, PolicyFeature

    side = AutoConfig.from_pretrained(vlm).vision_config.image_size
    seen = {f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, 20, 30)) for name in cameras}
    cfg = CONFIG.SmolVLAConfig(
        **{
            "vlm_model_name": str(vlm),
            "load_vlm_weights": False,
            "device": "cpu",
            "push_to_hub": False,
            "num_vlm_layers": 2,
            "chunk_size": 7,
            "n_action_steps": 7,
            "max_state_dim": 9,
            "max_action_dim": 11,
            "resize_imgs_with_padding": (side, side),
            "pad_language_to": "max_length",
            "tokenizer_max_length": 24,
            "input_features": {"observation.state": PolicyFeature(FeatureType.STATE, (state,)), **seen},
            "output_features": {"action": PolicyFeature(FeatureType.ACTION, (action,))},
            **settings,
        }
    )
    policy = MODEL.SmolVLAPolicy(cfg).float().eval()
    generator = torch.Generator().manual_seed(seed)
    for value in policy.state_dict().values():
        spread = value.shape[-1] ** -0.5 if value.dim() > 1 else 0.3
        value.copy_(torch.randn(value.shape, generator=generator) * spread + (value.dim() == 1))
    return policy


def make_processors(policy: Any, stats: dict[str, dict[str, Tensor]]) -> tuple[Any, Any]:
    """What prepares observations for the policy, and what its actions go through."""
    return PROCESSOR.make_smolvla_pre_post_processors(policy.config, stats)


def save_policy(policy: Any, stats: dict[str, dict[str, Tensor]], folder: Path) -> Path:
    """The layout of lerobot: what `load_policy` is given."""
    policy.save_pretrained(folder)
    for processor in make_processors(policy, stats):
        processor.save_pretrained(folder)
    return folder
