"""What a robot's cameras saw last: an unchanged picture is not encoded again, a slow camera's is kept."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tailorbird.errors import ConfigError, DataError
from tailorbird.model.vla import VLA
from tailorbird.processing.pipeline import Pipeline
from tailorbird.wire import Observation


@dataclass(frozen=True)
class Sight:
    """A camera's picture, and what the image tower made of it."""

    frame: Tensor  # (h, w, 3) uint8, shrunk
    time_s: float
    tokens: Tensor | None = None  # (tokens, C), None before it is encoded


class LastViews:
    """The last sight of each camera of one robot. Calls from several threads do not mix.

    num_same and num_late count pictures that were not encoded again: equal to the camera's last one, and
    missing, so that the last one served. num_encoded counts the others.

    With the engine torch, remembered tokens are bit for bit what encoding them again would give in a batch of
    as many pictures, and equal to rounding where the batch would be another; engines that encode pictures one
    by one make no difference at all.
    """

    def __init__(self, max_age_s: float = 0.0) -> None:
        """max_age_s: how old the last picture of a camera may be that shows none; 0 asks all for one always.

        Raises ConfigError if it is negative.
        """
        if not max_age_s >= 0:
            raise ConfigError(
                f"max_view_age_s={max_age_s} cannot be negative: 0 asks for every picture always"
            )
        self.max_age_s = max_age_s
        self.num_same = self.num_late = self.num_encoded = 0
        self._lock = threading.Lock()
        self._last: Mapping[str, Sight] = {}  # exchanged, never changed

    def forget(self) -> None:
        """Begin an episode. A look that began before it leaves nothing behind."""
        with self._lock:
            self._last = {}

    def match(self, seen: Observation, pipeline: Pipeline) -> "Glance":
        """The sights of an observation, in the order of the policy's cameras, with the tokens known already.

        Raises:
            DataError: a picture is missing, and there is no last one that is young enough.
        """
        last, frames = self._last, pipeline.frames(seen)
        late = {name: last[name] for name in last.keys() - frames.keys() if self._serves(last[name], seen)}
        self._require_all(seen, pipeline, {*frames, *late}, last)
        now = dict(late)
        for name, frame in frames.items():
            old, time_s = last.get(name), seen.image_time_s.get(name, seen.time_s)
            tokens = old.tokens if old is not None and torch.equal(old.frame, frame) else None
            now[name] = Sight(frame, time_s, tokens)
        return Glance(self, last, {name: now[name] for name in pipeline.robot_cameras})

    def _serves(self, old: Sight, seen: Observation) -> bool:
        return 0 <= seen.time_s - old.time_s <= self.max_age_s and self.max_age_s > 0

    def _require_all(
        self, seen: Observation, pipeline: Pipeline, there: set[str], last: Mapping[str, Sight]
    ) -> None:
        missing = [name for name in pipeline.robot_cameras if name not in there]
        if self.max_age_s and (old := [name for name in missing if name in last]):
            age = seen.time_s - last[old[0]].time_s
            raise DataError(
                f"no picture from {old[0]!r}, and its last one is {age:g} s old, where max_view_age_s="
                f"{self.max_age_s:g} is allowed: hold the robot until the camera is back"
            )
        pipeline.require_cameras(seen, there)

    def keep(self, glance: "Glance", now: Mapping[str, Sight], num_encoded: int) -> None:
        late = sum(sight is glance.last.get(name) for name, sight in glance.now.items())
        with self._lock:
            self.num_late += late
            self.num_encoded += num_encoded
            self.num_same += len(now) - late - num_encoded
            if self._last is glance.last:  # else there is another episode, or a later look
                self._last = now


@dataclass(frozen=True)
class Glance:
    """One observation's sights, by the robot's names of the cameras, and those that came before them."""

    views: LastViews
    last: Mapping[str, Sight]
    now: Mapping[str, Sight]

    @property
    def time_s(self) -> float:
        """When its oldest picture was taken."""
        return min(sight.time_s for sight in self.now.values())

    @property
    def new(self) -> list[str]:
        return [name for name, sight in self.now.items() if sight.tokens is None]


def shrink_views(model: VLA, pipeline: Pipeline, px: int) -> Pipeline:
    """Let a model see pictures with a smaller side: fewer patches, fewer tokens. It is changed in place.

    A patch takes the learned position of the place where it begins: SmolVLM's own rule for small pictures;
    equality is tested in tests/infer/test_small_views.py.

    Returns:
        The pipeline of that size. It is saved in Tailorbird's own layout: lerobot takes the tower's size from
        another model.
    Raises:
        ConfigError: pictures would not become smaller, or their patches do not divide into tokens.
    """
    cfg = model.cfg
    old = cfg.vlm.vision
    if not 0 < px <= old.image_size:
        raise ConfigError(f"image_px={px} must be in [1, {old.image_size}], the side that the policy learned")
    vlm = replace(cfg.vlm, vision=replace(old, image_size=px))
    rows = torch.arange(vlm.vision.grid) * old.grid // vlm.vision.grid
    table = model.vlm.vision.positions.weight[(rows[:, None] * old.grid + rows).flatten()]  # (P, C)
    model.vlm.vision.positions = nn.Embedding.from_pretrained(table.detach())
    model.cfg, model.vlm.cfg = replace(cfg, vlm=vlm), vlm
    return replace(pipeline, image=replace(pipeline.image, size=px), lerobot=None)


def pixels_of(glances: Sequence[Glance], pipeline: Pipeline) -> Tensor | None:
    """Pictures to encode, as one batch (M, 3, size, size), if there are any."""
    frames = [glance.now[name].frame for glance in glances for name in glance.new]
    return torch.stack([pipeline.image.scale(frame) for frame in frames]) if frames else None


def sights_of(glances: Sequence[Glance], tokens: Sequence[Tensor]) -> Tensor:
    """Tokens of all cameras, (B, N, tokens, C), kept for the next look.

    Args:
        tokens: (tokens, C) of each picture of `pixels_of`.
    """
    fresh, rows = iter(tokens), []
    for glance in glances:
        now = dict(glance.now)
        for name in glance.new:
            now[name] = replace(now[name], tokens=next(fresh).clone())  # a part would keep the whole batch
        glance.views.keep(glance, now, len(glance.new))
        rows.append(torch.stack([sight.tokens for sight in now.values() if sight.tokens is not None]))
    return torch.stack(rows)  # (B, N, tokens, C)
