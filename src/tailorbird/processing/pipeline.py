"""The one chain between a robot's numbers and a model's.

Training, evaluation and deployment use the same object.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tailorbird.errors import DataError
from tailorbird.processing.image import ImageSpec
from tailorbird.processing.normalize import Normalizer
from tailorbird.processing.text import InstructionTokenizer
from tailorbird.types import Inputs
from tailorbird.wire import Observation


def _as_tensor(picture: NDArray[np.uint8]) -> Tensor:
    """A copy: cameras hand out mirrored views and read-only buffers, which torch does not take."""
    return torch.from_numpy(np.array(picture, order="C"))


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Everything that a policy does besides the network. It travels inside the checkpoint.

    cameras: names in the order that the model sees them.
    hz: actions a second in the data that the policy learned from.
    """

    cameras: tuple[str, ...]
    image: ImageSpec
    state: Normalizer
    action: Normalizer
    tokenizer: InstructionTokenizer
    hz: float

    def prepare(self, frames: Tensor, state: Tensor, tasks: Sequence[str]) -> Inputs:
        """From shrunk frames to model inputs.

        Args:
            frames: (B, N, size, size, 3) uint8, from `ImageSpec.shrink`.
            state: (B, state_dim), physical units.
            tasks: B instructions.
        """
        ids, valid = self.tokenizer(tasks)
        return Inputs(pixels=self.image.scale(frames), ids=ids, ids_valid=valid, state=self.state(state))

    def read(self, seen: Sequence[Observation]) -> Inputs:
        """From live observations to model inputs.

        Raises:
            DataError: a camera is missing, or a state has the wrong size or is not finite.
        """
        for one in seen:
            missing = [name for name in self.cameras if name not in one.images]
            if missing:
                raise DataError(f"no picture from {missing}: the observation has {sorted(one.images)}")
            if one.state.shape != (self.state.width,) or not np.isfinite(one.state).all():
                raise DataError(f"the policy expects {self.state.width} finite state values, got {one.state}")
        frames = [
            torch.stack([self.image.shrink(_as_tensor(one.images[name])) for name in self.cameras])
            for one in seen
        ]
        state = torch.from_numpy(np.stack([one.state for one in seen]))
        return self.prepare(torch.stack(frames), state, [one.task for one in seen])

    def write(self, actions: Tensor) -> NDArray[np.float32]:
        """From the model's actions (B, L, A) to physical units."""
        return self.action.inverse(actions).cpu().numpy()
