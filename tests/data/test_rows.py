"""The rows of every step, however many make them, stopped and continued."""

import json
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from conversing import Talks, small_processor

from tailorbird.data.config import RowsConfig, ShowConfig
from tailorbird.data.encode import Encoder
from tailorbird.data.mixture import Mixture, Part
from tailorbird.data.pack import Refused
from tailorbird.data.rows import RowLoader, counts_of
from tailorbird.data.sample import Sample
from tailorbird.data.stock import Draws, Stock
from tailorbird.errors import ConfigError, DataError
from tailorbird.types import Rows

CFG = RowsConfig(tokens=150, tiles=15, lanes=4, at_once=2, look_ahead=3, workers=0, ahead=2, bad_share=0.5)
SHOW = ShowConfig(long_side=(0.5, 0.5), system="Look.")
ENCODER = Encoder(processor=small_processor(fast=True), cfg=SHOW, tokens=150, tiles=15, seed=5)
A, B = Talks("a", 37, bad=(3, 8)), Talks("b", 20, seen=False)


def mixture(*sources: Any, **options: Any) -> Mixture:
    return Mixture([Part(source=one) for one in sources or (A, B)], seed=2, **options)


def loader(mix: Mixture | None = None, *, rank: int = 0, world: int = 1, **changes: Any) -> RowLoader:
    return RowLoader(mix or mixture(), ENCODER, replace(CFG, **changes), rank=rank, world=world)


def same(a: Rows, b: Rows) -> bool:
    if (a.pixels is None) != (b.pixels is None) or a.names != b.names or a.sources != b.sources:
        return False
    tensors = [
        getattr(one, name) for name in ("ids", "positions", "segment", "learned", "pixels") for one in (a, b)
    ]
    return all(torch.equal(x, y) for x, y in zip(tensors[::2], tensors[1::2], strict=True) if x is not None)


def alike(a: Sequence[Sequence[Rows]], b: Sequence[Sequence[Rows]]) -> bool:
    return len(a) == len(b) and all(
        same(x, y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True)
    )


def through_json(position: Any) -> Any:
    return json.loads(json.dumps(position))


@pytest.fixture(scope="module")
def whole() -> list[tuple[Rows, ...]]:
    return list(loader().steps(0, 12))


def test_a_step_has_a_row_of_every_lane_and_each_lane_its_own_draws(whole: list[tuple[Rows, ...]]) -> None:
    assert [[len(rows.ids) for rows in step] for step in whole] == [[2, 2]] * 12
    mix = mixture()
    for k in range(4):
        rows = [step[k // 2].names[k % 2] for step in whole]
        shown = [name for row in rows for name in row]
        expected = []
        for draw in range(k, 4000, 4):
            number, row, _ = mix.at(draw)
            source = mix.parts[number].source
            if row not in source.bad:
                expected.append(f"{source.name}[{row}]")
        left = expected[: len(shown) + CFG.look_ahead + 1]  # as many may wait
        for name in shown:
            left.remove(name)


def test_rows_keep_within_their_limits_and_no_label_stands_on_an_image(whole: list[tuple[Rows, ...]]) -> None:
    image = ENCODER.processor.tokenizer.id("<image>")
    for rows in (rows for step in whole for rows in step):
        assert rows.ids.shape[1] <= 150
        assert max(rows.tiles) <= 15
        assert ((rows.ids == image).sum(1) == torch.tensor(rows.tiles) * 5).all()
        assert rows.learned.any(1).all()
        assert not rows.learned[(rows.ids == image) | (rows.positions == 0)].any()
        pixels = rows.to("cpu").pixels
        assert pixels is None or (pixels.dtype == torch.float32 and pixels.abs().max() <= 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_from_any_step_as_if_it_had_never_stopped(
    whole: list[tuple[Rows, ...]], workers: int
) -> None:
    for stop in (1, 7):
        first = loader(workers=workers)
        steps = first.steps(0, 12)
        before = list(islice(steps, stop))
        position = through_json(first.position())  # the workers are further on
        steps.close()
        late = loader(workers=2 - workers)
        late.restore(position)
        assert alike([*before, *late.steps(stop, 12)], whole)


def test_two_processes_have_the_rows_of_one_and_go_on_from_each_others_state(
    whole: list[tuple[Rows, ...]],
) -> None:
    ranks = [loader(rank=rank, world=2, at_once=1) for rank in range(2)]
    halves = [list(one.steps(0, 5)) for one in ranks]
    for step, left, right in zip(whole, *halves, strict=False):
        together = [rows.names[i] for rows in step for i in range(2)]
        assert [left[0].names[0], right[0].names[0], left[1].names[0], right[1].names[0]] == together
    joined = through_json(ranks[0].position() | ranks[1].position())
    alone = loader()
    alone.restore(joined)
    assert alike(list(alone.steps(5, 12)), whole[5:])
    two = loader()
    list(two.steps(0, 5))
    assert through_json(two.position()) == joined
    with pytest.raises(DataError, match=r"says nothing of lanes \[1, 3\], only of \[0, 2\]: join"):
        alone.restore(ranks[0].position())


def test_what_is_handed_out_counts_not_what_was_prepared(whole: list[tuple[Rows, ...]]) -> None:
    one = loader(workers=2)
    start = one.position()
    steps = one.steps(0, 12)
    assert one.position() == start
    next(steps)
    after = one.position()
    time.sleep(0.3)  # the next step is packed meanwhile
    assert one.position() == after
    steps.close()
    other = loader()
    list(other.steps(0, 1))
    assert other.position() == after


def test_what_cannot_be_used_is_counted_and_the_count_is_part_of_the_state(
    whole: list[tuple[Rows, ...]],
) -> None:
    one = loader()
    list(one.steps(0, 12))
    dropped, fitted = one.counts()
    expected = sum(
        1
        for k, state in one.position().items()
        for draw in range(int(k), state["next"], 4)
        if mixture().at(draw).source == 0 and mixture().at(draw).row in A.bad
    )
    assert dropped == {"a": {"no picture": expected}}
    assert expected > 2
    assert set(fitted) <= {"a", "b"}
    late = loader()
    late.restore(through_json(one.position()))
    assert late.counts() == (dropped, fitted) == counts_of(one.position())


def test_too_much_that_cannot_be_used_stops_the_run_and_names_the_first(tmp_path: Path) -> None:
    broken = Talks("broken", 50, bad=range(0, 50, 4))
    few = loader(mixture(broken), bad_share=0.1, bad_after=40)
    with pytest.raises(
        DataError, match=r"(?s)^\d+ of \d+ conversations .* more than 10%: repair .*draw"
    ) as caught:
        list(few.steps(0, 500))
    named = str(caught.value).splitlines()[1:]
    draws = [int(line.split()[1].rstrip(",")) for line in named]
    assert len(named) <= 10
    assert draws == sorted(draws)
    first = next(draw for draw in range(1000) if few.mixture.at(draw).row % 4 == 0)
    assert draws[0] == first
    assert f"no picture: broken, row {few.mixture.at(first).row}: there is no picture" in named[0]
    assert len(list(loader(mixture(broken), bad_share=0.45, bad_after=40).steps(0, 20))) == 20


def test_nothing_but_bad_rows_ends_rather_than_searching_for_ever() -> None:
    with pytest.raises(DataError, match="40 of 40 conversations cannot be used"):
        list(loader(mixture(Talks("broken", 5, bad=range(5))), bad_share=0.9, bad_after=40).steps(0, 1))


def test_all_of_a_source_is_shown_once_when_one_lane_goes_through_it() -> None:
    mix = mixture(A, B, when_dry="drop")
    steps = list(loader(mix, lanes=1, at_once=1).steps(0, 10_000))
    shown = sorted(name for step in steps for rows in step for row in rows.names for name in row)
    assert shown == sorted([f"a[{i}]" for i in range(37) if i not in A.bad] + [f"b[{i}]" for i in range(20)])
    assert len(list(loader(mix).steps(0, 10_000))) >= len(steps) // 4 - 1


class Unopened:
    """A source whose file is gone."""

    name, fingerprint = "gone", "g"

    def __len__(self) -> int:
        return 5

    def __getitem__(self, row: int) -> Sample:
        raise DataError(f"gone.parquet cannot be read at row {row}")


class Faulty(Unopened):
    """A source with a bug."""

    def __getitem__(self, row: int) -> Sample:
        raise KeyError("image")


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_data_is_a_reason_and_a_bug_is_not(workers: int) -> None:
    with pytest.raises(DataError, match=r"unreadable row: gone\.parquet cannot be read at row"):
        list(loader(mixture(Unopened()), workers=workers, bad_after=5).steps(0, 1))
    with pytest.raises(KeyError, match="image"):
        list(loader(mixture(Faulty()), workers=workers).steps(0, 1))


class Deadly(Talks):
    """A source with a row whose reader is killed, as the system does when the memory is full."""

    def __getitem__(self, row: int) -> Sample:
        if row == 31:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(row)


def test_a_killed_worker_is_an_error_that_says_what_to_do() -> None:
    before = set(children())
    one = loader(mixture(Deadly("deadly", 60)), workers=2)
    with pytest.raises(DataError, match=r"opens pictures came to an end.*fewer --rows\.workers"):
        list(one.steps(0, 100))
    assert not (set(children()) - before)


@pytest.mark.parametrize(
    "error", [ConnectionResetError(104, "reset"), FileNotFoundError(2, "gone"), EOFError()]
)
def test_a_worker_that_goes_while_its_tensor_is_fetched_is_the_same_error(error: Exception) -> None:
    """Which of the two the loader sees first is chance."""
    stock = Stock(Draws(mixture(), ENCODER), {0: iter([0])}, replace(CFG, workers=1))

    def cut() -> Iterator[Any]:
        raise error
        yield

    stock.close()  # or the worker's real end would be told while another test runs
    stock._encoded = cut()
    with pytest.raises(DataError, match=r"opens pictures came to an end.*fewer --rows\.workers"):
        stock.take(0)


def children() -> list[int]:
    return [one.pid for one in multiprocessing.active_children() if one.pid]


def test_workers_end_with_the_steps_and_a_stop_signal_does_not_end_them_before() -> None:
    before = set(children())
    one = loader(workers=2)
    steps = one.steps(0, 12)
    first = [next(steps)]
    workers = set(children()) - before
    assert len(workers) >= 2
    for pid in workers:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    assert len([*first, *steps]) == 12
    assert not (set(children()) - before)


def test_the_global_state_of_chance_is_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.get_rng_state()
    list(loader(workers=1).steps(0, 1))
    assert torch.equal(torch.get_rng_state(), expected)


def test_a_lane_that_is_quick_does_not_run_far_ahead() -> None:
    """What is encoded and not yet packed is held in memory."""
    todo = {k: iter(range(k, 4000, 4)) for k in range(4)}
    stock = Stock(Draws(mixture(B), ENCODER), todo, replace(CFG, workers=2))
    for i in range(200):
        one = stock.take(0)
        assert one is not None
        assert one.draw == 4 * i
        assert sum(map(len, stock._ready.values())) <= 4 * (2 * CFG.ahead + 1)
    stock.close()


def test_workers_that_are_started_anew_and_not_forked_encode_the_same() -> None:
    draws = Draws(mixture(), ENCODER)
    sent = pickle.loads(pickle.dumps(draws))  # noqa: S301 (our own)
    for draw in range(8):
        one, other = draws[draw], sent[draw]
        if isinstance(one, Refused):
            assert one == other
        else:
            assert one.ids.tolist() == other.ids.tolist()
            assert (one.name, one.num_tiles) == (other.name, other.num_tiles)


def test_a_run_is_continued_only_with_what_makes_the_same_rows() -> None:
    known = json.dumps(loader().settings, sort_keys=True)
    assert json.dumps(loader(workers=2, at_once=1, ahead=7, lengths=(150,)).settings, sort_keys=True) == known
    for other in (
        loader(look_ahead=4),
        loader(lanes=8),
        loader(mixture(A)),
        RowLoader(mixture(), replace(ENCODER, seed=6), CFG),
        RowLoader(mixture(), replace(ENCODER, cfg=replace(SHOW, outro="x")), CFG),
    ):
        assert json.dumps(other.settings, sort_keys=True) != known


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ConfigError, match="lanes=4 cannot be shared by 3 processes"):
        loader(world=3)
    with pytest.raises(ConfigError, match="made to fit 150 tokens and 15 tiles, and rows have 90 and 15"):
        loader(tokens=90)
    for changes in ({"lanes": 0}, {"workers": -1}, {"bad_share": 1.0}):
        with pytest.raises(ConfigError):
            replace(CFG, **changes)
