"""A policy: the model, its pipeline, and the noise that each chunk starts from."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, Unpack, get_args

import torch
from torch import Tensor

from tailorbird.checkpoint.folder import read_object
from tailorbird.checkpoint.hub import find_model
from tailorbird.checkpoint.lerobot import OWN_VLM, Asked
from tailorbird.checkpoint.lerobot_steps import Stats
from tailorbird.checkpoint.policy import read_policy
from tailorbird.errors import ConfigError, DataError
from tailorbird.infer.config import PolicyEngine
from tailorbird.infer.device import find_device, find_dtype
from tailorbird.infer.graphs import ReplayedVLA
from tailorbird.infer.openvino import require_cpu
from tailorbird.infer.vla_openvino import CompiledVLA, find_precision, require_precision
from tailorbird.model.config import Solver
from tailorbird.model.vla import VLA
from tailorbird.processing.pipeline import Pipeline
from tailorbird.wire import ActionChunk, Observation


class Policy:
    """Observation to chunk, in physical units. Callable, so it fits wherever a function does.

    The noise of a chunk depends on the seed of `reset` and on how many chunks came since: the same episode
    starts from the same noises, on whatever device.
    """

    def __init__(self, model: VLA, pipeline: Pipeline) -> None:
        self.model, self.pipeline = model.eval().requires_grad_(False), pipeline
        self._generator = torch.Generator()
        self.reset()

    @property
    def device(self) -> torch.device:
        return self.model.state_in.weight.device

    def reset(self, seed: int = 0) -> None:
        """Begin an episode."""
        self._generator.manual_seed(seed)

    def act(self, seen: Observation) -> ActionChunk:
        return self.act_batch([seen])[0]

    __call__ = act

    @torch.inference_mode()
    def act_batch(self, seen: Sequence[Observation], noise: Tensor | None = None) -> list[ActionChunk]:
        """One chunk for each of several robots.

        Args:
            noise: (B, L, action_dim) to start from, instead of the episode's next.
        Raises:
            DataError: an observation or the noise does not fit the policy, or an action is not finite.
        """
        cfg = self.model.cfg
        shape = (len(seen), cfg.chunk, cfg.action_dim)
        if not seen or (noise is not None and noise.shape != shape):
            got = "no noise" if noise is None else f"noise of {tuple(noise.shape)}"
            raise DataError(f"{len(seen)} observations and {got}: at least one is needed, with {shape}")
        began = time.perf_counter()
        inputs = self.pipeline.read(seen).to(self.device)
        read = time.perf_counter()
        prefix = self.model.encode(inputs)
        self._wait()
        encoded = time.perf_counter()
        start = self._noise(len(seen)) if noise is None else noise
        actions = self.pipeline.write(self.model.sample(prefix, start.to(self.device)))  # (B, L, A)
        done = time.perf_counter()
        if not torch.isfinite(torch.from_numpy(actions)).all():
            raise DataError(
                "the policy's actions are not finite: its weights are damaged, or the state is far off"
            )
        cost = {"prepare": read - began, "encode": encoded - read, "denoise": done - encoded}
        milliseconds = {stage: 1e3 * seconds for stage, seconds in cost.items()}
        return [
            ActionChunk(actions=chunk, time_s=one.time_s, infer_ms=milliseconds)
            for chunk, one in zip(actions, seen, strict=True)
        ]

    def _noise(self, num: int) -> Tensor:
        """Drawn on the CPU, whose numbers are the same beside every device."""
        cfg = self.model.cfg
        return torch.randn(num, cfg.chunk, cfg.action_dim, generator=self._generator)

    def _wait(self) -> None:
        if self.device.type == "cuda":  # calls return before the work is done, and a clock would not see it
            torch.cuda.synchronize(self.device)


class Changes(TypedDict, total=False):
    """What `load_policy` changes about a policy.

    rename: the robot's names of cameras to the policy's.
    without: cameras of the policy that the robot does not have.
    stats: what to normalise with in a policy of lerobot: the folder of a dataset, its meta/stats.json, or the
        name of one of the sets that the policy comes with.
    num_steps, solver: how noise becomes actions.
    """

    rename: Mapping[str, str] | None
    without: Sequence[str]
    stats: str | Path | None
    num_steps: int | None
    solver: Solver | None


def load_policy(
    path_or_id: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    engine: PolicyEngine = "torch",
    revision: str | None = None,
    **changes: Unpack[Changes],
) -> Policy:
    """Load a policy of Tailorbird or a SmolVLA of lerobot.

    Args:
        path_or_id: folder, or id on the hub.
        device: "cpu", "cuda", "cuda:1", ...; "auto" is the first GPU if there is one.
        dtype: of what the release has in bfloat16, or of all that is compiled; None is float32, in which a
            policy of lerobot acts as there, or what Tailorbird's own layout has, int8 too.
        engine: "torch" is exact, and so to rounding is "graphs", of CUDA. "openvino" compiles for the
            CPU, in float32, bfloat16 or int8, to the tolerance that tests/infer/test_vla_openvino.py states.
        revision: branch, tag or commit on the hub.
        changes: see `Changes`.
    Raises:
        CheckpointError: there is no policy, or it is damaged, or it would act otherwise here.
        MissingStats: a policy of lerobot has no statistics for the robot's state or its actions.
        ConfigError: the device is not here, or the policy has no such camera.
    """
    if unknown := sorted(changes.keys() - Changes.__annotations__.keys()):
        raise ConfigError(
            f"load_policy has no {', '.join(unknown)}: it takes device, dtype, engine, revision, "
            f"{', '.join(Changes.__annotations__)}"
        )
    if engine not in get_args(PolicyEngine):
        raise ConfigError(f"there is no engine {engine!r}: name {', '.join(get_args(PolicyEngine))}")
    compiled = engine == "openvino"
    where = require_cpu(device) if compiled else find_device(device)
    if engine == "graphs" and not where.startswith("cuda"):
        raise ConfigError(
            f"the engine graphs records what a GPU does, not the {where}: take torch or openvino"
        )
    if compiled:
        require_precision(dtype)
    kind = torch.float32 if compiled else find_dtype(dtype)
    folder = find_model(path_or_id, revision, inner=(OWN_VLM,))
    without, stats = changes.get("without") or (), changes.get("stats")
    names = (without,) if isinstance(without, str) else tuple(without)
    asked = Asked(
        rename=changes.get("rename"),
        without=names,
        stats=None if stats is None else _find_stats(stats),
        source=str(stats) if stats is not None and Path(stats).exists() else None,
    )
    model, pipeline = read_policy(folder, where, asked, kind)
    steps = {name: value for name in ("num_steps", "solver") if (value := changes.get(name)) is not None}
    model.cfg = replace(model.cfg, **steps)  # type: ignore[arg-type]
    if compiled:
        model = CompiledVLA(model, find_precision(dtype, model))
    elif engine == "graphs":
        model = ReplayedVLA(model)
    return Policy(model, pipeline)


def _find_stats(stats: str | Path) -> Stats | str:
    """Those of a dataset here, else what may be the name of a set.

    Raises:
        CheckpointError: the file is damaged, or the folder has none.
    """
    path = Path(stats)
    if not path.exists():
        return str(stats)
    found = read_object(path / "meta/stats.json" if path.is_dir() else path)
    return {key: value for key, value in found.items() if isinstance(value, dict)}
