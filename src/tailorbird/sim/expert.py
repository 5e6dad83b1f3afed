"""Meta-World's scripted experts."""

import warnings

import numpy as np
from numpy.typing import NDArray

from tailorbird.sim.metaworld import MetaWorld


class ScriptedExpert:
    """Sees the simulator's full state, acts as the package's script for the task says."""

    def __init__(self, task: str) -> None:
        from metaworld.policies import ENV_POLICY_MAP

        self._script = ENV_POLICY_MAP[task]()

    def act(self, env: MetaWorld) -> NDArray[np.float32]:
        """The expert's action, (4,), clipped to [-1, 1]."""
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # the scripts warn that their gains are clipped; they are
            return np.asarray(self._script.get_action(env.privileged), np.float32).clip(-1, 1)
