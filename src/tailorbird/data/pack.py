"""Packing: the samples of a lane into rows, in order, with little left free."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any

from tailorbird.data.config import RowsConfig
from tailorbird.data.encode import Encoded
from tailorbird.errors import DataError

NAMED = 10  # offenders that are remembered
Counts = dict[str, dict[str, int]]  # by source, then by reason


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A draw that nothing can be learned from."""

    draw: int
    source: str
    reason: str
    message: str


@dataclass(kw_only=True)
class LaneState:
    """Where a lane is: with it, a run goes on exactly.

    next: the first draw that it has not looked at. carried: draws before that which wait for a row with room.
    dropped: what could not be used. fitted: what was shortened. first_bad: the first that were dropped, each
    with its draw.
    """

    next: int
    carried: list[int] = field(default_factory=list)
    dropped: Counts = field(default_factory=dict)
    fitted: Counts = field(default_factory=dict)
    first_bad: list[tuple[int, str]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "first_bad": [list(one) for one in self.first_bad]}

    @staticmethod
    def from_json(saved: Mapping[str, Any]) -> "LaneState":
        """Raises DataError if something else was saved."""
        try:
            state = LaneState(**deepcopy(dict(saved)))  # the counts go on, what was saved does not
            state.first_bad = [(int(draw), str(message)) for draw, message in state.first_bad]
        except (TypeError, ValueError) as error:
            raise DataError(
                f"not the state of a lane ({error}): continue with the release that saved it, or begin again"
            ) from None
        return state

    @property
    def num_dropped(self) -> int:
        return sum(sum(reasons.values()) for reasons in self.dropped.values())

    def add_dropped(self, one: Refused) -> None:
        _count(self.dropped, one.source, one.reason)
        if len(self.first_bad) < NAMED:
            self.first_bad.append((one.draw, f"{one.reason}: {one.message}"))

    def add_fitted(self, one: Encoded) -> None:
        for what in one.fitted:
            _count(self.fitted, one.source, what)


class Lane:
    """The rows of one lane: each sample is in exactly one, and the oldest that waits is always in the next.

    take: the next draw of the lane, encoded; None when there are no more. First come those that `state` says
        are carried. checked: called when a draw was dropped; it may raise. stride: from a draw to the next.
    """

    def __init__(
        self,
        state: LaneState,
        take: Callable[[], Encoded | Refused | None],
        *,
        checked: Callable[[], None],
        stride: int,
        cfg: RowsConfig,
    ) -> None:
        self.state, self._take, self._checked, self._stride, self._cfg = state, take, checked, stride, cfg
        self._waiting: list[Encoded] | None = None  # those carried, once they were encoded again

    def next_row(self) -> list[Encoded]:
        """Samples of at most `tokens` and `tiles` together; none when the mixture has come to its end."""
        if self._waiting is None:
            again = [self._take() for _ in self.state.carried]
            for gone in [one for one in again if isinstance(one, Refused)]:
                self._drop(gone)
            self._waiting = [one for one in again if isinstance(one, Encoded)]
        row, waiting, known = list[Encoded](), list[Encoded](), iter(self._waiting)
        tokens, tiles = self._cfg.tokens, self._cfg.tiles
        while tokens and len(waiting) <= self._cfg.look_ahead:
            one = next(known, None) or self._draw()
            if one is None:
                break
            if len(one.ids) <= tokens and one.num_tiles <= tiles:
                row.append(one)
                tokens, tiles = tokens - len(one.ids), tiles - one.num_tiles
            else:
                waiting.append(one)
        self._waiting = [*waiting, *known]
        self.state.carried = [one.draw for one in self._waiting]
        return row

    def _draw(self) -> Encoded | None:
        """The next that can be used."""
        while (one := self._take()) is not None:
            self.state.next = one.draw + self._stride
            if isinstance(one, Encoded):
                self.state.add_fitted(one)
                return one
            self._drop(one)
        return None

    def _drop(self, one: Refused) -> None:
        self.state.add_dropped(one)
        self._checked()


def _count(counts: Counts, source: str, what: str) -> None:
    of_source = counts.setdefault(source, {})
    of_source[what] = of_source.get(what, 0) + 1
