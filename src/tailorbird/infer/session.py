"""What a policy remembers of one robot. Many of them share one policy."""

import threading

import torch
from torch import Tensor

from tailorbird.infer.views import LastViews


class Session:
    """The noises of a robot's episode, and what its cameras saw last. Calls from several threads are safe.

    generation: how many episodes were begun; what was computed under another one is out of date.
    """

    def __init__(self, chunk: int, action_dim: int, *, max_view_age_s: float = 0.0) -> None:
        """max_view_age_s: see `LastViews`."""
        self.views, self.generation = LastViews(max_view_age_s), 0
        self._shape, self._lock = (chunk, action_dim), threading.Lock()
        self._generator = torch.Generator().manual_seed(0)

    def reset(self, seed: int = 0) -> None:
        """Begin an episode."""
        with self._lock:
            self._generator.manual_seed(seed)
            self.generation += 1
            self.views.forget()

    def noise(self, num: int = 1) -> Tensor:
        """The next `num` chunks' beginnings, (num, L, action_dim).

        Drawn on the CPU, whose numbers are the same beside every device.
        """
        with self._lock:
            return torch.randn(num, *self._shape, generator=self._generator)
