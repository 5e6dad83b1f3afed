"""The one chain between a robot's numbers and a model's.

Training, evaluation and deployment use the same object.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tailorbird.errors import ConfigError, DataError
from tailorbird.processing.aloha import NUM_JOINTS, decode_actions, decode_state, encode_actions
from tailorbird.processing.image import ImageSpec, Letterbox
from tailorbird.processing.normalize import Scale
from tailorbird.processing.text import InstructionTokenizer
from tailorbird.types import Inputs
from tailorbird.wire import Observation


def _as_tensor(picture: NDArray[np.uint8] | Tensor) -> Tensor:
    """A copy: cameras hand out mirrored views and read-only buffers, which torch does not take."""
    if isinstance(picture, Tensor):
        return picture.to("cpu", copy=True)
    return torch.from_numpy(np.array(picture, order="C"))


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Everything that a policy does besides the network. It travels inside the checkpoint.

    cameras: the policy's own names, in the order that the model sees them.
    hz: actions a second in the data that the policy learned from; None if nobody wrote that down.
    state_dim, action_dim: what the model wants, filled up with zeros; 0 is as wide as the statistics.
    aloha: joints are turned into those of SmolVLA's base.
    rename: the robot's names of cameras to the policy's.
    absent: cameras of the policy that the robot does not have; nothing is shown in their place.
    lerobot: config.json in lerobot's layout, if the policy is to be saved in it.
    """

    cameras: tuple[str, ...]
    image: ImageSpec | Letterbox
    state: Scale
    action: Scale
    tokenizer: InstructionTokenizer
    hz: float | None
    state_dim: int = 0
    action_dim: int = 0
    aloha: bool = False
    rename: Mapping[str, str] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    lerobot: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        there = f"the policy's cameras are {', '.join(self.cameras) or 'none'}"
        if unknown := sorted({*self.rename.values(), *self.absent} - {*self.cameras}):
            raise ConfigError(f"no camera {', '.join(unknown)}: {there}. Name those in rename= and without=")
        if len({*self.rename.values()}) < len(self.rename):
            raise ConfigError(f"rename={dict(self.rename)} gives one camera two pictures: {there}")
        if not self.seen_cameras:
            raise ConfigError(f"a policy needs a picture: {there}, and without= names all of them")
        self._require_one_picture_each(there)
        for what, model, robot in (
            ("state values", self.state_dim, self.state.width),
            ("action values", self.action_dim, self.action.width),
        ):
            if model and model < robot:
                raise ConfigError(f"the model reads {model} {what}, there are statistics of {robot}")
            if self.aloha and robot != NUM_JOINTS:
                raise ConfigError(f"an Aloha has {NUM_JOINTS} {what}, there are statistics of {robot}")

    def _require_one_picture_each(self, there: str) -> None:
        asked, given = f"rename={dict(self.rename)}", {*self.rename.values()}
        if both := sorted(given & {*self.absent}):
            raise ConfigError(
                f"{asked} gives a picture to {both[0]}, which without= leaves out: {there}. "
                "Say one of the two"
            )
        for robot, ours in self.rename.items():
            if robot in self.seen_cameras and robot not in given:
                raise ConfigError(
                    f"{asked} shows one picture as two cameras, {ours} and {robot}: {there}. "
                    f"Rename the picture that belongs to {robot}, or leave it out with without="
                )

    @property
    def seen_cameras(self) -> tuple[str, ...]:
        """The cameras whose pictures the model gets, by the policy's names."""
        return tuple(name for name in self.cameras if name not in self.absent)

    @property
    def robot_cameras(self) -> tuple[str, ...]:
        """The same, by the names that observations have."""
        robot = {theirs: ours for ours, theirs in self.rename.items()}
        return tuple(robot.get(name, name) for name in self.seen_cameras)

    def prepare(self, frames: Sequence[Tensor], state: Tensor, tasks: Sequence[str]) -> Inputs:
        """From shrunk frames to model inputs.

        Args:
            frames: one (B, H, W, 3) uint8 for each of `seen_cameras`, from `image.shrink`.
            state: (B, width of the statistics), physical units.
            tasks: B instructions.
        """
        pixels = torch.stack([self.image.scale(one) for one in frames], dim=1)  # (B, N, 3, size, size)
        return self._inputs(pixels, self._normal(state), tasks)

    def prepare_actions(self, actions: Tensor) -> Tensor:
        """From physical units (B, L, A) to what the model learns to say, (B, L, action_dim)."""
        normal = self.action(actions)
        return _filled(decode_actions(normal) if self.aloha else normal, self.action_dim)

    def read(self, seen: Sequence[Observation]) -> Inputs:
        """From live observations to model inputs.

        Raises:
            DataError: a camera is missing; a state has the wrong size, is not finite, or moved where the
                statistics do not vary.
        """
        state = self.states(seen)  # cheap, so what is wrong with it is said first
        pixels = torch.stack([self._pictures(one) for one in seen])  # (B, N, 3, size, size)
        return self._inputs(pixels, state, [one.task for one in seen])

    def states(self, seen: Sequence[Observation]) -> Tensor:
        """The states alone, as the model reads them, (B, state_dim). Raises DataError as `read` does."""
        return self._normal(torch.from_numpy(np.stack([self._state(one) for one in seen])))

    def frames(self, one: Observation) -> dict[str, Tensor]:
        """The pictures that are there, shrunk, by the robot's names of the cameras."""
        there = [name for name in self.robot_cameras if name in one.images]
        return {name: self.image.shrink(_as_tensor(one.images[name])) for name in there}

    def require_cameras(self, one: Observation, there: Collection[str]) -> None:
        """Raises DataError if a camera is none of those that there are."""
        if missing := [name for name in self.robot_cameras if name not in there]:
            raise DataError(
                f"no picture from {missing}: the observation has {sorted(one.images)}. Name the robot's "
                f"cameras as the policy's {list(self.cameras)} with rename=, or leave some out with without="
            )

    def physical(self, actions: Tensor) -> Tensor:
        """From the model's actions (B, L, action_dim) to physical units (B, L, A). See `prepare_actions`."""
        kept = actions[..., : self.action.width].float()  # (B, L, A)
        return self.action.inverse(encode_actions(kept) if self.aloha else kept)

    def write(self, actions: Tensor) -> NDArray[np.float32]:
        """`physical`, as a robot takes it."""
        return self.physical(actions).cpu().numpy()

    def _inputs(self, pixels: Tensor, state: Tensor, tasks: Sequence[str]) -> Inputs:
        ids, valid = self.tokenizer(tasks)
        return Inputs(pixels=pixels, ids=ids, ids_valid=valid, state=state)

    def _normal(self, state: Tensor) -> Tensor:
        """(B, width of the statistics) in physical units to (B, state_dim)."""
        normal = self.state(state)
        return _filled(decode_state(normal) if self.aloha else normal, self.state_dim)

    def _pictures(self, one: Observation) -> Tensor:
        """(N, 3, size, size)."""
        frames = self.frames(one)
        self.require_cameras(one, frames)
        return torch.stack([self.image.scale(frame) for frame in frames.values()])

    def _state(self, one: Observation) -> NDArray[np.float32]:
        width, state = self.state.width, np.asarray(one.state)
        if state.shape != (width,) or state.dtype.kind not in "fiu" or not np.isfinite(state).all():
            raise DataError(f"the policy expects {width} finite state values, got {one.state}")
        if moved := self.state.moved(state.astype(np.float32)):
            index, usual = moved
            raise DataError(
                f"state value {index} is {state[index]:g}, and its statistics in the data that the policy "
                f"learned from do not vary: always {usual:g}, or nearly always. Keep it there, or train with "
                "data in which it moves"
            )
        return state.astype(np.float32)


def _filled(x: Tensor, width: int) -> Tensor:
    """(..., C) to (..., width) with zeros behind; 0 leaves it."""
    return F.pad(x, (0, max(0, width - x.shape[-1])))
