"""What the training loop does not know: what is learned from what, and what a checkpoint is to its users."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from tailorbird.checkpoint.peft import Adapter


@dataclass(frozen=True, kw_only=True)
class Portion:
    """What one forward and one backward pass learn from: a step's batch, or a part of it, on the CPU.

    weights: how much there is to learn, by source: tokens or actions. What has no sources has one, named "".
    names: of its samples, for people.
    samples, tokens, places: how many it has; tokens and places are 0 where there is no padding to speak of.
    """

    weights: Mapping[str, float]
    names: Sequence[str]
    samples: int
    tokens: int = 0
    places: int = 0

    @property
    def weight(self) -> float:
        return sum(self.weights.values())


M = TypeVar("M", bound=nn.Module)
P = TypeVar("P", bound=Portion)


class Lesson(ABC, Generic[M, P]):
    """What a model M is taught, from portions P."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that decides the next step besides the weights and the schedule, as JSON: a run is only
        continued with the same."""

    @abstractmethod
    def steps(self, start: int, stop: int) -> Iterator[Sequence[P]]:
        """The portions of the steps [start, stop), each step's as its turn comes; fewer if the data end."""

    @abstractmethod
    def loss(self, model: M, portion: P) -> Tensor:
        """The sums of the losses of each source, (sources,), in the order of `portion.weights`.

        A function of its arguments alone, dropout aside.
        """

    @abstractmethod
    def evaluate(self, model: M) -> dict[str, float]:
        """Figures of what is not learned from, for the log."""

    @abstractmethod
    def write(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Make an empty folder the model with these weights, fp32 on the CPU; called from another thread."""

    def write_adapter(self, folder: Path, adapter: Adapter) -> None:
        """Write low-rank updates once more, apart from the weights that they were merged into, as far as
        others have a form for them; called from another thread."""

    def figures(self) -> dict[str, float]:
        """What else each line of the log says; what several processes say is added up."""
        return {}

    def position(self) -> Any:
        """Where in its data the run is after the step that `steps` gave last, as JSON."""
        return None

    def restore(self, position: Any) -> None:
        """Go on from such a place; called before `steps`."""
