"""A policy: the model, its pipeline, and the noise that each chunk starts from."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypedDict, TypeVar, Unpack, get_args

import numpy as np
import torch
from numpy.typing import NDArray
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
from tailorbird.infer.rtc import guide_of, require_guidance
from tailorbird.infer.session import Session
from tailorbird.infer.views import Glance, LastViews, pixels_of, shrink_views, sights_of
from tailorbird.infer.vla_openvino import CompiledVLA, find_precision, require_precision
from tailorbird.model.config import Solver, Views
from tailorbird.model.flow import Guide
from tailorbird.model.vla import VLA, Reading
from tailorbird.processing.pipeline import Pipeline
from tailorbird.wire import ActionChunk, Observation

T = TypeVar("T")


@dataclass(frozen=True)
class Scene:
    """Pictures and words, read. Nothing changes it, so that `act_on` may use it again and again.

    time_s: when the oldest of its pictures was taken.
    infer_ms: what reading it cost, per stage.
    """

    time_s: float
    reading: Reading
    infer_ms: Mapping[str, float]


class Prepared(NamedTuple):
    """What the model reads of pictures and words."""

    glances: list[Glance]  # of each robot
    pixels: Tensor | None  # (M, 3, size, size), the pictures that are not encoded yet
    ids: Tensor  # (B, T)
    ids_valid: Tensor  # (B, T)


class Policy:
    """Observation to chunk, in physical units. Callable, so it fits wherever a function does.

    The noise of a chunk depends on the seed of `reset` and on how many chunks came since: the same episode
    starts from the same noises, on whatever device. `act` is two halves, which may run at the same time in
    two threads: `look`, slow, and `act_on`, fast. Beside its own robot a policy serves others by `act_batch`,
    each with a `new_session`.
    """

    def __init__(self, model: VLA, pipeline: Pipeline, *, max_view_age_s: float = 0.0) -> None:
        """max_view_age_s: how old a camera's last picture may be, when an observation has none of it; 0
        refuses such an observation."""
        self.model, self.pipeline = model.eval().requires_grad_(False), pipeline
        self.session = self.new_session(max_view_age_s)

    @property
    def device(self) -> torch.device:
        return self.model.state_in.weight.device

    def new_session(self, max_view_age_s: float = 0.0) -> Session:
        """For one more robot. It begins an episode, with seed 0."""
        cfg = self.model.cfg
        return Session(cfg.chunk, cfg.action_dim, max_view_age_s=max_view_age_s)

    def reset(self, seed: int = 0) -> None:
        """Begin an episode: the views of the last one are forgotten."""
        self.session.reset(seed)

    def act(self, seen: Observation) -> ActionChunk:
        """`act_on` what `look` gives. Raises as `act_batch` does."""
        return self.act_batch([seen], sessions=[self.session])[0]

    __call__ = act

    @torch.inference_mode()
    def look(self, seen: Observation) -> Scene:
        """Read pictures and words. A picture that did not change since the last look is not encoded again.

        Raises:
            DataError: a picture is missing, or the instruction is too long.
        """
        prepared, spent_ms = self._timed(lambda: self.prepare([seen], [self.session]))
        reading, encode_ms = self._timed(lambda: self._encode(prepared))
        return Scene(prepared.glances[0].time_s, reading, {"prepare": spent_ms, "encode": encode_ms})

    @torch.inference_mode()
    def act_on(self, scene: Scene, seen: Observation) -> ActionChunk:
        """The chunk that follows the state of `seen` in a scene; its pictures and its task are not read.

        Raises:
            DataError: the state or what is committed does not fit the policy, or an action is not finite.
            ConfigError: something is committed, and the engine can neither be guided nor go on from it.
        """
        felt, prepare_ms = self._timed(lambda: self._feel([seen]))
        work = partial(self._denoise, scene.reading, felt, self.session.noise())
        actions, denoise_ms = self._timed(work)
        spent = {"prepare": prepare_ms, "denoise": denoise_ms}
        return ActionChunk(actions=actions[0], time_s=seen.time_s, scene_time_s=scene.time_s, infer_ms=spent)

    @torch.inference_mode()
    def act_batch(
        self,
        seen: Sequence[Observation],
        noise: Tensor | None = None,
        sessions: Sequence[Session] | None = None,
    ) -> list[ActionChunk]:
        """One chunk for each of several robots.

        Args:
            noise: (B, L, action_dim) to start from, instead of the next of the sessions.
            sessions: of the robots, whose noises and views are used. None takes all noises from the policy's
                own, and encodes every picture.
        Raises:
            DataError: an observation, the noise or the sessions do not fit the policy, or an action is not
                finite.
            ConfigError: something is committed, and the engine can neither be guided nor go on from it.
        """
        self._require_as_many(seen, noise, sessions)
        felt, felt_ms = self._timed(lambda: self._feel(seen))  # first: what it refuses is refused at once
        prepared, prepare_ms = self._timed(lambda: self.prepare(seen, sessions))
        reading, encode_ms = self._timed(lambda: self._encode(prepared))
        if noise is not None:
            start = noise
        elif sessions is not None:
            start = torch.cat([one.noise() for one in sessions])
        else:
            start = self.session.noise(len(seen))
        actions, denoise_ms = self._timed(lambda: self._denoise(reading, felt, start))
        spent = {"prepare": felt_ms + prepare_ms, "encode": encode_ms, "denoise": denoise_ms}
        return [
            ActionChunk(actions=chunk, time_s=one.time_s, scene_time_s=glance.time_s, infer_ms=spent)
            for chunk, one, glance in zip(actions, seen, prepared.glances, strict=True)
        ]

    def prepare(self, seen: Sequence[Observation], sessions: Sequence[Session] | None) -> Prepared:
        """From observations to what the model reads of pictures and words."""
        views = [LastViews() for _ in seen] if sessions is None else [one.views for one in sessions]
        glances = [last.match(one, self.pipeline) for last, one in zip(views, seen, strict=True)]
        pixels = pixels_of(glances, self.pipeline)
        return Prepared(glances, pixels, *self.pipeline.tokenizer([one.task for one in seen]))

    def _encode(self, prepared: Prepared) -> Reading:
        """Of all cameras' pictures the new ones go through the image tower, as one batch."""
        glances, pixels, ids, valid = prepared
        tokens = () if pixels is None else self.model.see(pixels.to(self.device)).unbind()
        reading = self.model.look(sights_of(glances, tokens), ids.to(self.device), valid.to(self.device))
        if self.device.type == "cuda":  # calls return before the work is done, and a clock would not see it
            torch.cuda.synchronize(self.device)
        return reading

    def _feel(self, seen: Sequence[Observation]) -> tuple[Tensor, Guide | None]:
        """States (B, state_dim), and what the robots are committed to."""
        state, guide = self.pipeline.states(seen), guide_of(seen, self.pipeline, self.model.cfg.chunk)
        if guide is not None:
            require_guidance(self.model)
            guide = guide.to(self.device)
        return state.to(self.device), guide

    def _denoise(
        self, scene: Reading, felt: tuple[Tensor, Guide | None], noise: Tensor
    ) -> NDArray[np.float32]:
        """Actions (B, L, A) in physical units."""
        state, guide = felt
        actions = self.pipeline.write(self.model.act_on(scene, state, noise.to(self.device), guide))
        if not np.isfinite(actions).all():
            raise DataError(
                "the policy's actions are not finite: its weights are damaged, or the state is far off"
            )
        return actions

    def _require_as_many(
        self, seen: Sequence[Observation], noise: Tensor | None, sessions: Sequence[Session] | None
    ) -> None:
        cfg = self.model.cfg
        shape = (len(seen), cfg.chunk, cfg.action_dim)
        if not seen or (noise is not None and noise.shape != shape):
            got = "no noise" if noise is None else f"noise of {tuple(noise.shape)}"
            raise DataError(f"{len(seen)} observations and {got}: at least one is needed, with {shape}")
        if sessions is not None and not len({id(one) for one in sessions}) == len(sessions) == len(seen):
            raise DataError(
                f"{len(seen)} observations, {len(sessions)} sessions: each robot needs one of its own"
            )

    @staticmethod
    def _timed(work: Callable[[], T]) -> tuple[T, float]:
        """What it returns, and how long that took, in ms."""
        began = time.perf_counter()
        result = work()
        return result, 1e3 * (time.perf_counter() - began)


class Changes(TypedDict, total=False):
    """What `load_policy` changes about a policy.

    rename: the robot's names of cameras to the policy's.
    without: cameras of the policy that the robot does not have.
    stats: what to normalise with in a policy of lerobot: the folder of a dataset, its meta/stats.json, or the
        name of one of the sets that the policy comes with.
    num_steps, solver: how noise becomes actions.
    views: how cameras are put together. Gated by a task: a policy that learned from joint ones has never seen
        pooled ones, so measure whether it still solves what it is for.
    image_px: side of the pictures that the model sees, at most the one it learned from: fewer tokens, and
        less to see. Gated by a task, too.
    max_view_age_s: see `Policy`.
    """

    rename: Mapping[str, str] | None
    without: Sequence[str]
    stats: str | Path | None
    num_steps: int | None
    solver: Solver | None
    views: Views | None
    image_px: int | None
    max_view_age_s: float


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
    other = {
        name: value for name in ("num_steps", "solver", "views") if (value := changes.get(name)) is not None
    }
    model.cfg = replace(model.cfg, **other)  # type: ignore[arg-type]
    if (px := changes.get("image_px")) is not None:
        pipeline = shrink_views(model, pipeline, px)
    if compiled:
        model = CompiledVLA(model, find_precision(dtype, model))
    elif engine == "graphs":
        model = ReplayedVLA(model)
    return Policy(model, pipeline, max_view_age_s=changes.get("max_view_age_s", 0.0))


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
