"""The rows of every step of a VLM: drawn, encoded by several processes, packed in order, resumed exactly."""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import chain, count
from typing import Any

from tailorbird.data.collate import collate
from tailorbird.data.config import RowsConfig
from tailorbird.data.encode import Encoded, Encoder
from tailorbird.data.mixture import Mixture
from tailorbird.data.pack import NAMED, Counts, Lane, LaneState
from tailorbird.data.stock import Draws, Stock
from tailorbird.errors import ConfigError, DataError
from tailorbird.types import Rows

Position = dict[str, dict[str, Any]]  # the state of each lane, as JSON


class RowLoader:
    """The rows of each step, for one of several processes that train together.

    Lane k of `lanes` packs the draws k, k + lanes, ...; process `rank` of `world` has the lanes that leave
    this remainder. So what a step learns from depends on the number of neither processes nor workers.
    """

    def __init__(
        self, mixture: Mixture, encoder: Encoder, cfg: RowsConfig, *, rank: int = 0, world: int = 1
    ) -> None:
        if cfg.lanes % world:
            raise ConfigError(f"{cfg.lanes=} cannot be shared by {world} processes: choose a multiple of it")
        if (encoder.tokens, encoder.tiles) != (cfg.tokens, cfg.tiles):
            raise ConfigError(
                f"samples are made to fit {encoder.tokens} tokens and {encoder.tiles} tiles, and rows have "
                f"{cfg.tokens} and {cfg.tiles}: make both the same"
            )
        self.mixture, self.encoder, self.cfg = mixture, encoder, cfg
        self._lanes = range(rank, cfg.lanes, world)
        self._position: Position = {str(k): LaneState(next=k).to_json() for k in self._lanes}

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the rows besides the processor, as JSON."""
        shape = {name: getattr(self.cfg, name) for name in ("tokens", "tiles", "lanes", "look_ahead")}
        show = {**asdict(self.encoder.cfg), "long_side": list(self.encoder.cfg.long_side)}
        return {"mixture": self.mixture.fingerprint, "seed": self.encoder.seed, "show": show, **shape}

    def position(self) -> Position:
        """After the step that `steps` gave last. Those of several processes are joined by `|`."""
        return self._position

    def restore(self, position: Position) -> None:
        """Go on from there; whoever saved it may have been of another number of processes.

        Raises:
            DataError: a lane is missing.
        """
        absent = [k for k in self._lanes if str(k) not in position]
        if absent:
            raise DataError(
                f"what was saved says nothing of lanes {absent}, only of {sorted(map(int, position))}: join "
                "what all processes saved"
            )
        self._position = {str(k): LaneState.from_json(position[str(k)]).to_json() for k in self._lanes}

    def counts(self) -> tuple[Counts, Counts]:
        """What was dropped, and what was shortened, since the run began."""
        return counts_of(self._position)

    def steps(self, start: int, stop: int) -> Iterator[tuple[Rows, ...]]:
        """The batches of stop - start steps from `position` on, each of `at_once` rows.

        It ends sooner when a lane finds no more draws, as happens where a mixture ends. Of several processes
        one may find out a step before the others: then all must stop.

        Raises:
            DataError: a worker came to an end, or too much cannot be used.
        """
        states = {k: LaneState.from_json(self._position[str(k)]) for k in self._lanes}
        packing = Packing(Draws(self.mixture, self.encoder), states, self.mixture.length, self.cfg)

        def made() -> tuple[tuple[Rows, ...], Position] | None:
            rows = packing.step()
            if rows is None:
                return None
            parts = [rows[i : i + self.cfg.at_once] for i in range(0, len(rows), self.cfg.at_once)]
            batches = tuple(collate(part, self.cfg, self.encoder.processor.pad_id) for part in parts)
            return batches, {str(k): state.to_json() for k, state in states.items()}

        with ThreadPoolExecutor(1) as pool:
            try:
                ahead = pool.submit(made)
                for step in range(start, stop):
                    one = ahead.result()
                    if one is None:
                        return
                    if self.cfg.workers and step + 1 < stop:
                        ahead = pool.submit(made)  # while the caller computes
                    batches, self._position = one
                    yield batches
                    if not self.cfg.workers and step + 1 < stop:
                        ahead = pool.submit(made)
            finally:
                pool.submit(packing.close).result()


class Packing:
    """The lanes of one process at work. Only one thread may use it: the workers are its children.

    states: of each lane; they change. length: of the mixture, None without an end.
    """

    def __init__(
        self, draws: Draws, states: Mapping[int, LaneState], length: int | None, cfg: RowsConfig
    ) -> None:
        self._draws, self._states, self._length, self._cfg = draws, states, length, cfg
        self._lanes: list[Lane] = []
        self._stock: Stock | None = None

    def step(self) -> list[list[Encoded]] | None:
        """A row of every lane; None if there is none for one of them."""
        if self._stock is None:
            # Not earlier: made in the main thread, the loader would raise a worker's death there, anywhere.
            self._stock = Stock(self._draws, {k: self._todo(k) for k in self._states}, self._cfg)
            self._lanes = [self._lane(k, self._stock) for k in self._states]
        rows = list[list[Encoded]]()
        for lane in self._lanes:
            rows.append(lane.next_row())
            if not rows[-1]:
                return None
        return rows

    def close(self) -> None:
        if self._stock is not None:
            self._stock.close()

    def _lane(self, number: int, stock: Stock) -> Lane:
        return Lane(
            self._states[number],
            partial(stock.take, number),
            checked=self._check_dropped,
            stride=self._cfg.lanes,
            cfg=self._cfg,
        )

    def _todo(self, number: int) -> Iterable[int]:
        state, stride = self._states[number], self._cfg.lanes
        new = count(state.next, stride) if self._length is None else range(state.next, self._length, stride)
        return chain(state.carried, new)

    def _check_dropped(self) -> None:
        """Raises DataError if too much cannot be used."""
        dropped = sum(state.num_dropped for state in self._states.values())
        drawn = sum((state.next - k) // self._cfg.lanes for k, state in self._states.items())
        if drawn < self._cfg.bad_after or dropped <= self._cfg.bad_share * drawn:
            return
        first = sorted(bad for state in self._states.values() for bad in state.first_bad)[:NAMED]
        named = "".join(f"\n  draw {draw}, {message}" for draw, message in first)
        raise DataError(
            f"{dropped} of {drawn} conversations cannot be used, more than {self._cfg.bad_share:.0%}: repair "
            f"the data, or raise --rows.bad-share. The first of them:{named}"
        )


def counts_of(position: Position) -> tuple[Counts, Counts]:
    """What was dropped and what was shortened in all lanes, by source, then by reason."""
    dropped: Counts = {}
    fitted: Counts = {}
    for saved in position.values():
        for into, of_lane in ((dropped, saved["dropped"]), (fitted, saved["fitted"])):
            for source, reasons in of_lane.items():
                for reason, num in reasons.items():
                    of_source = into.setdefault(source, {})
                    of_source[reason] = of_source.get(reason, 0) + num
    return dropped, fitted
