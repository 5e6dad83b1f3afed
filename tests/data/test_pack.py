"""Samples into rows."""

import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tailorbird.data.collate import collate, padded_length, padding_share
from tailorbird.data.config import RowsConfig
from tailorbird.data.encode import Encoded
from tailorbird.data.pack import NAMED, Lane, LaneState, Refused
from tailorbird.errors import ConfigError, DataError

STRIDE, FIRST = 4, 2  # the third of four lanes
T, TILES = 50, 6


def encoded(draw: int, length: int, tiles: int = 0, fitted: tuple[str, ...] = ()) -> Encoded:
    return Encoded(
        draw=draw,
        name=f"sample {draw}",
        source="odd" if draw % 8 == FIRST else "even",
        ids=np.arange(length, dtype=np.int32) + 7,
        learned=np.arange(length) % 3 == 1,
        levels=torch.full((tiles, 3, 2, 2), draw % 256, dtype=torch.uint8) if tiles else None,
        fitted=fitted,
    )


def samples(seed: int, num: int) -> list[Encoded | Refused]:
    """The draws of the lane: mostly short ones, some that cannot be used."""
    rng = np.random.default_rng(seed)
    found: list[Encoded | Refused] = []
    for draw in range(FIRST, FIRST + STRIDE * num, STRIDE):
        if rng.random() < 0.1:
            found.append(Refused(draw=draw, source="even", reason="no picture", message=f"row {draw}"))
        else:
            short = int(min(rng.exponential(14) + 1, T))
            found.append(
                encoded(draw, short, int(rng.integers(0, min(short, 5))), ("cut",) * int(short == T))
            )
    return found


def lane_of(todo: list[Encoded | Refused], state: LaneState | None = None, look_ahead: int = 3) -> Lane:
    """Goes on where the state says, as the loader does."""
    state = state or LaneState(next=FIRST)
    by_draw = {one.draw: one for one in todo}
    new = range(state.next, FIRST + STRIDE * len(todo), STRIDE)
    order: Iterator[Encoded | Refused] = iter([by_draw[draw] for draw in [*state.carried, *new]])
    cfg = RowsConfig(tokens=T, tiles=TILES, look_ahead=look_ahead)
    return Lane(state, lambda: next(order, None), checked=lambda: None, stride=STRIDE, cfg=cfg)


def rows_of(lane: Lane) -> list[list[int]]:
    rows = []
    while row := lane.next_row():
        assert sum(len(one.ids) for one in row) <= T
        assert sum(one.num_tiles for one in row) <= TILES
        rows.append([one.draw for one in row])
    return rows


@pytest.mark.parametrize("look_ahead", [0, 1, 3, 8])
@pytest.mark.parametrize("seed", range(6))
def test_rows_never_hold_too_much_and_no_sample_is_lost_or_shown_twice(seed: int, look_ahead: int) -> None:
    todo = samples(seed, 200)
    lane = lane_of(todo, look_ahead=look_ahead)
    rows = rows_of(lane)
    shown = sorted(draw for row in rows for draw in row)
    assert shown == [one.draw for one in todo if isinstance(one, Encoded)]
    assert lane.state.carried == []
    assert lane.state.next == FIRST + STRIDE * 200


@pytest.mark.parametrize("seed", range(6))
def test_a_lane_goes_on_from_its_state_as_if_it_had_never_stopped(seed: int) -> None:
    todo = samples(seed, 120)
    whole = lane_of(todo)
    expected, states = [], [whole.state.to_json()]
    while row := whole.next_row():
        expected.append([one.draw for one in row])
        states.append(whole.state.to_json())
    for i, saved in enumerate(states):
        kept = json.dumps(saved)
        late = lane_of(todo, LaneState.from_json(saved))
        assert rows_of(late) == expected[i:]
        assert json.dumps(saved) == kept
        assert late.state.to_json() == states[-1]  # the counts too


def test_what_waits_longest_is_in_the_next_row() -> None:
    lane = lane_of([encoded(FIRST, 30), encoded(6, 40), encoded(10, 45), encoded(14, 10), encoded(18, 9)])
    assert rows_of(lane) == [[FIRST, 14, 18], [6], [10]]


def test_looking_ahead_fills_rows_better_and_stops_at_its_limit() -> None:
    todo = samples(3, 400)
    near, far = (len(rows_of(lane_of(todo, look_ahead=num))) for num in (0, 8))
    assert far < near
    lane = lane_of([encoded(FIRST, 30), *(encoded(draw, 40) for draw in range(6, 70, 4))])
    assert [one.draw for one in lane.next_row()] == [FIRST]
    assert lane.state.carried == [6, 10, 14, 18]


def test_a_row_is_closed_by_its_tiles_as_well() -> None:
    lane = lane_of([encoded(FIRST, 9, 4), encoded(6, 9, 3), encoded(10, 9, 2), encoded(14, 9, 0)])
    assert rows_of(lane) == [[FIRST, 10, 14], [6]]


def test_what_was_dropped_and_shortened_is_counted_by_source_and_reason() -> None:
    bad = [
        Refused(draw=FIRST + 4 * i, source="odd", reason="too long", message=f"row {i}") for i in range(14)
    ]
    other = Refused(draw=58, source="even", reason="no picture", message="row x")
    lane = lane_of(
        [*bad, other, encoded(62, 5, fitted=("cut", "fewer tiles")), encoded(66, 5, fitted=("cut",))]
    )
    rows_of(lane)
    assert lane.state.dropped == {"odd": {"too long": 14}, "even": {"no picture": 1}}
    assert lane.state.num_dropped == 15
    assert lane.state.fitted == {"even": {"cut": 1, "fewer tiles": 1}, "odd": {"cut": 1}}
    assert lane.state.first_bad == [(FIRST + 4 * i, f"too long: row {i}") for i in range(NAMED)]


def test_a_state_of_something_else_is_refused() -> None:
    for saved in ({"next": 1, "taken": 3}, {}, {"next": 0, "first_bad": [[1]]}):
        with pytest.raises(DataError, match="not the state of a lane"):
            LaneState.from_json(saved)


ROWS = [
    [encoded(0, 7, 2), encoded(1, 4)],
    [encoded(2, 5, 1)],
    [encoded(3, 8, 3), encoded(4, 1), encoded(5, 3)],
]


def test_segments_and_positions_begin_anew_with_each_sample() -> None:
    rows = collate(ROWS, RowsConfig(tokens=13, tiles=6), pad_id=99)
    assert rows.ids.shape == (3, 13)
    assert rows.segment.tolist()[0] == [0] * 7 + [1] * 4 + [-1] * 2
    assert rows.segment.tolist()[2] == [0] * 8 + [1] + [2] * 3 + [-1]
    assert rows.positions.tolist()[0] == [*range(7), *range(4), 0, 0]
    for i, row in enumerate(ROWS):
        for number, one in enumerate(row):
            here = rows.segment[i] == number
            assert rows.ids[i, here].tolist() == one.ids.tolist()
            assert rows.learned[i, here].tolist() == one.learned.tolist()
            assert rows.positions[i, here].tolist() == list(range(len(one.ids)))
    padding = rows.segment < 0
    assert (rows.ids[padding] == 99).all()
    assert not rows.learned[padding].any()


def test_tiles_are_those_of_the_first_row_then_of_the_next() -> None:
    rows = collate(ROWS, RowsConfig(tokens=13, tiles=6), pad_id=99)
    assert rows.tiles == (2, 1, 3)
    assert rows.pixels is not None
    assert rows.pixels[:, 0, 0, 0].tolist() == [0, 0, 2, 3, 3, 3]
    assert rows.names[2] == ("sample 3", "sample 4", "sample 5")
    assert rows.sources == (("even", "even"), ("odd",), ("even", "even", "even"))
    assert collate([[encoded(1, 4)]], RowsConfig(), pad_id=0).pixels is None


def test_rows_have_one_of_few_lengths() -> None:
    assert [padded_length(n, RowsConfig(tokens=200)) for n in (1, 64, 65, 130, 200)] == [
        64,
        64,
        128,
        192,
        200,
    ]
    few = RowsConfig(tokens=200, lengths=(90, 200))
    assert [padded_length(n, few) for n in (1, 90, 91, 200)] == [90, 90, 200, 200]
    with pytest.raises(ConfigError, match="the longest of"):
        RowsConfig(tokens=200, lengths=(90, 100))


def test_the_share_of_padding_is_that_of_all_places() -> None:
    rows = collate(ROWS, RowsConfig(tokens=13, tiles=6), pad_id=99)
    assert padding_share([rows]) == pytest.approx((2 + 8 + 1) / 39)
    assert padding_share(
        [rows, collate([[encoded(1, 13)]], RowsConfig(tokens=13), pad_id=0)]
    ) == pytest.approx(11 / 52)
