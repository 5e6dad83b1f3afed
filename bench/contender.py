"""One way to act, in a process of its own: it computes while it is asked, and sleeps while others are.

PYTHONPATH=tests python bench/contender.py PATH DTYPE FOLDER        PATH: lerobot, torch or openvino

Reads a request a line, answers a line, both JSON: {"cameras": 3, "scene": 0} with the time of one call and
its actions, {"cameras": 3, "scene": 0, "count": true} with the operators of one denoise step instead.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from tailorbird.evals.scenes import load_scenes
from tailorbird.infer.policy import Policy, load_policy
from tailorbird.infer.vla_openvino import CompiledVLA
from tailorbird.perf.memory import peak_bytes
from tailorbird.wire import Observation
from turns import Answering, answer_requests

CAMERAS = ("camera1", "camera2", "camera3")
FRAME = (640, 480)  # width, height in px of a camera's picture
STATE_DIM, CHUNK, ACTION_DIM = 6, 50, 32
NOT_RUN = {"Input", "Output", "Const", "Parameter", "Result"}  # nodes of OpenVINO that compute nothing


def observe(cameras: int, scene: int) -> tuple[Observation, torch.Tensor]:
    """What every contender is shown, and the noise it starts from: the same for the same numbers.

    Each camera shows the simulated scene after the one before; the instruction is always the same.
    """
    scenes = load_scenes()
    pictures = [picture for one in scenes for picture in one.images.values()]
    frames = [
        np.asarray(Image.fromarray(pictures[(scene + i) % len(pictures)]).resize(FRAME))
        for i in range(cameras)
    ]
    draw = torch.Generator().manual_seed(scene)
    state = torch.randn(STATE_DIM, generator=draw).numpy()
    images = dict(zip(CAMERAS, frames, strict=False))
    noise = torch.randn(1, CHUNK, ACTION_DIM, generator=draw)
    return Observation(images=images, state=state, task=scenes[0].task), noise


class Operators(TorchDispatchMode):
    """Counts what reaches torch's kernels, a view as one too."""

    num = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counted(owner: Any, method: str) -> Iterator[list[int]]:
    """The operators of each call of a method."""
    work, found = getattr(owner, method), []

    def count(*args: Any, **kwargs: Any) -> Any:
        with Operators() as operators:
            result = work(*args, **kwargs)
        found.append(operators.num)
        return result

    setattr(owner, method, count)
    try:
        yield found
    finally:
        delattr(owner, method)


class Lerobot:
    """As lerobot runs it: its own processors, from a camera's bytes to actions in physical units."""

    def __init__(self, folder: Path, dtype: str) -> None:
        import lerobot_reference  # noqa: F401  makes lerobot importable without what only robots need
        from tailorbird.evals.reference import _load

        self.policy, self.before, self.after = _load(folder, "cpu")
        if dtype != "float32":  # what is around the expert stays in fp32: its own release has it so
            self.policy.model.vlm_with_expert.to(getattr(torch, dtype))

    def __call__(self, seen: Observation, noise: torch.Tensor) -> dict[str, Any]:
        self.policy.reset()
        batch: dict[str, Any] = {
            "observation.state": torch.from_numpy(seen.state)[None],
            "task": [seen.task],
        }
        for name, frame in seen.images.items():
            image = torch.from_numpy(frame.copy()).permute(2, 0, 1)[None]  # (1, 3, H, W)
            batch[f"observation.images.{name}"] = image.float() / 255
        actions = self.policy.predict_action_chunk(self.before(batch), noise=noise)
        return {"actions": self.after(actions).float().numpy()[0]}

    def count(self, act: Callable[[], object]) -> dict[str, float]:
        with counted(self.policy.model, "denoise_step") as found:
            act()
        return {"operators": statistics.mean(found)}


class Ours:
    def __init__(self, folder: Path, engine: Any, dtype: str) -> None:
        self.policy = load_policy(folder, device="cpu", engine=engine, dtype=dtype)

    def __call__(self, seen: Observation, noise: torch.Tensor) -> dict[str, Any]:
        absent = CAMERAS[len(seen.images) :]
        if self.policy.pipeline.absent != absent:
            self.policy = Policy(self.policy.model, replace(self.policy.pipeline, absent=absent))
        (chunk,) = self.policy.act_batch([seen], noise)
        return {"actions": chunk.actions, "stages_ms": chunk.infer_ms}

    def count(self, act: Callable[[], object]) -> dict[str, float]:
        """A call of OpenVINO is one; its nodes are those of the graph that it made of the expert."""
        model = self.policy.model
        with counted(model, "velocity") as found:
            act()
        if not isinstance(model, CompiledVLA):
            return {"operators": statistics.mean(found)}
        graph = model.action_out._call._request.get_compiled_model().get_runtime_model()
        nodes = [op for op in graph.get_ops() if op.get_rt_info()["layerType"].value not in NOT_RUN]
        return {"operators": statistics.mean(found) + 1, "nodes": len(nodes)}


def answer(contender: Lerobot | Ours, asked: dict[str, Any]) -> dict[str, Any]:
    seen, noise = observe(asked["cameras"], asked["scene"])
    if asked.get("count"):
        return contender.count(lambda: contender(seen, noise))
    with torch.inference_mode():
        began = time.perf_counter()
        found = contender(seen, noise)
        ms = 1e3 * (time.perf_counter() - began)
    actions: NDArray[np.float32] = found.pop("actions")
    return {"ms": ms, "peak_mib": peak_bytes() / 2**20, "actions": actions.tolist(), **found}


def main() -> None:
    path, dtype, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])

    def build() -> Answering:
        contender = Lerobot(folder, dtype) if path == "lerobot" else Ours(folder, path, dtype)
        return lambda asked: answer(contender, asked)

    answer_requests(build)


if __name__ == "__main__":
    main()
