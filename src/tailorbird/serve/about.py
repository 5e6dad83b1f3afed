"""What a served policy wants to see, and whether an observation is that."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tailorbird.codec import Caps, Compressed
from tailorbird.errors import DataError
from tailorbird.infer.policy import Policy
from tailorbird.wire import Committed, Observation


@dataclass(frozen=True, kw_only=True)
class About:
    """cameras: by the robot's names. usual: a state in the middle of the data, (state_dim,), physical units.

    action_width: of a robot's actions; model_width: of the model's, which may be wider.
    max_view_age_s: see `Policy`; unless it is 0, a camera may be missing.
    """

    cameras: tuple[str, ...]
    usual: NDArray[np.float32]
    chunk: int
    action_width: int
    model_width: int
    hz: float | None
    size_px: int
    max_view_age_s: float

    @property
    def state_width(self) -> int:
        return len(self.usual)

    def fit(self, seen: Observation, caps: Caps) -> Observation:
        """What a peer sent as the policy takes it: pictures are opened, and those of other cameras left out.

        Raises:
            DataError: a camera is missing, or a value has another shape or kind, or is not finite.
        """
        images, times = seen.images, seen.image_time_s
        if len(self.cameras) == len(images) == 1:
            ((theirs, picture),) = images.items()
            images = {self.cameras[0]: picture}
            times = {self.cameras[0]: times[theirs]} if theirs in times else {}
        missing = [name for name in self.cameras if name not in images]
        if missing and not self.max_view_age_s:
            raise DataError(
                f"no picture from {missing}: the observation has {sorted(images)}, the policy sees "
                f"{list(self.cameras)}"
            )
        if seen.state.shape != (self.state_width,) or not np.isfinite(seen.state).all():
            shape = list(seen.state.shape)
            raise DataError(f"the policy expects {self.state_width} finite state values, got shape {shape}")
        _require_actions(seen.committed, self.action_width)
        shown, room_px = dict[str, NDArray[np.uint8]](), caps.num_pixels
        for name in self.cameras:
            if name in images:
                shown[name] = _picture(name, images[name], room_px)
                room_px -= shown[name].size // 3
        return replace(seen, images=shown, image_time_s=times)

    def made_up(self) -> Observation:
        """Black pictures and a usual state, to warm up with."""
        black = np.zeros((self.size_px, self.size_px, 3), np.uint8)
        return Observation(images=dict.fromkeys(self.cameras, black), state=self.usual, task="wait")

    def metadata(self) -> dict[str, Any]:
        return {
            "cameras": list(self.cameras),
            "state_dim": self.state_width,
            "action_dim": self.action_width,
            "chunk": self.chunk,
            "hz": self.hz,
        }


def about(policy: Policy) -> About:
    pipeline = policy.pipeline
    return About(
        cameras=pipeline.robot_cameras,
        usual=pipeline.state.inverse(torch.zeros(pipeline.state.width)).numpy(),
        chunk=policy.model.cfg.chunk,
        action_width=pipeline.action.width,
        model_width=policy.model.cfg.action_dim,
        hz=pipeline.hz,
        size_px=pipeline.image.size,
        max_view_age_s=policy.session.views.max_age_s,
    )


def _picture(name: str, picture: Any, room_px: int) -> NDArray[np.uint8]:
    found = picture.open(room_px) if isinstance(picture, Compressed) else picture
    if not isinstance(found, np.ndarray):
        raise DataError(f"a picture is an array: {name!r} is none")
    if found.dtype != np.uint8 or found.ndim != 3 or found.shape[2] != 3 or found.size == 0:
        raise DataError(f"a picture is (H, W, 3) uint8: {name!r} is {list(found.shape)} {found.dtype}")
    if found.size > 3 * room_px:
        raise DataError(f"{name!r} has {found.size // 3} px: an observation has room for {room_px} more")
    return found


def _require_actions(committed: Committed | None, width: int) -> None:
    if committed is None:
        return
    if committed.actions.shape[1] != width or not np.isfinite(committed.actions).all():
        raise DataError(f"committed actions are (n, {width}) and finite, got {list(committed.actions.shape)}")
