"""The slow half of a policy in the background, the fast half on every call."""

from typing import Generic, Protocol, TypeVar

from tailorbird.control.thinkers import Thinker, drop_answer
from tailorbird.errors import ConfigError
from tailorbird.wire import ActionChunk, Observation


class Scene(Protocol):
    @property
    def time_s(self) -> float:
        """When its oldest picture was taken."""


S = TypeVar("S", bound=Scene)


class Halves(Protocol[S]):
    """A policy in two halves, such as `tailorbird.infer.policy.Policy`."""

    def look(self, seen: Observation) -> S:
        """Pictures and words: most of the work."""

    def act_on(self, scene: S, seen: Observation) -> ActionChunk:
        """The state of `seen` and the actions, over a scene."""

    def reset(self, seed: int = 0) -> None: ...


class Reuse(Generic[S]):
    """Acts on the newest state over the scene that was read last, while the next one is read.

    Callable, as a policy is. A new instruction is waited for; new pictures are not. What fails in the
    background is raised by the next call, which after that goes on with the old scene: how old it may be is
    for the loop's guard to say.
    """

    def __init__(self, policy: Halves[S], looker: Thinker[S], refresh_s: float = 0.0) -> None:
        """
        Args:
            looker: calls `policy.look`.
            refresh_s: age of a scene, on the robot's clock, at which the next one is begun; 0 reads one after
                the other.
        """
        if not refresh_s >= 0:
            raise ConfigError(f"{refresh_s=} cannot be negative: 0 reads one scene after the other")
        self._policy, self._looker, self._refresh_s = policy, looker, refresh_s
        self._scene: S | None = None
        self._looked: Observation | None = None  # at this, last

    def reset(self, seed: int = 0) -> None:
        """Begin an episode: nothing seen before is used."""
        self._scene = self._looked = None
        drop_answer(self._looker)
        self._policy.reset(seed)

    def __call__(self, seen: Observation) -> ActionChunk:
        scene = self._newest(seen)
        old = seen is not self._looked and seen.time_s - scene.time_s >= self._refresh_s
        if old and not self._looker.busy:
            self._looked = seen
            self._looker.start(seen)
        return self._policy.act_on(scene, seen)

    def _newest(self, seen: Observation) -> S:
        if self._looker.busy and (found := self._looker.poll()) is not None:
            self._scene = found
        if self._scene is None or self._looked is None or self._looked.task != seen.task:
            self._scene = self._looked = None  # of another instruction: not to be used if the next look fails
            drop_answer(self._looker)
            self._looker.start(seen)
            self._scene, self._looked = self._looker.wait(), seen
        return self._scene
