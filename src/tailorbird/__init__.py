"""Small vision-language(-action) models, from data to robot.

The names below are loaded when they are first used, so that parts which need no torch start without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tailorbird.data.lerobot import LeRobotDataset as LeRobotDataset
    from tailorbird.errors import TailorbirdError as TailorbirdError
    from tailorbird.infer.chat import ChatModel as ChatModel
    from tailorbird.infer.chat import ask as ask
    from tailorbird.infer.chat import load_vlm as load_vlm
    from tailorbird.infer.config import ImageOptions as ImageOptions
    from tailorbird.infer.config import Sampling as Sampling
    from tailorbird.infer.policy import Policy as Policy
    from tailorbird.infer.policy import load_policy as load_policy
    from tailorbird.wire import ActionChunk as ActionChunk
    from tailorbird.wire import Observation as Observation

_HOMES = {
    "ActionChunk": "wire",
    "ChatModel": "infer.chat",
    "ImageOptions": "infer.config",
    "LeRobotDataset": "data.lerobot",
    "Observation": "wire",
    "Policy": "infer.policy",
    "Sampling": "infer.config",
    "TailorbirdError": "errors",
    "ask": "infer.chat",
    "load_policy": "infer.policy",
    "load_vlm": "infer.chat",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"tailorbird has no {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"tailorbird.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
