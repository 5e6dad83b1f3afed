"""The actions that are still to be executed, and how smooth those are that were."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tailorbird.control.chunks import ChunkQueue, Ensemble, Transitions, transitions
from tailorbird.wire import ActionChunk


def chunk(*values: float) -> ActionChunk:
    return ActionChunk(actions=np.array(values, np.float32)[:, None])


def test_an_empty_queue_has_no_action() -> None:
    queue = ChunkQueue()
    assert queue.get(0) is None
    assert queue.left(0) == 0


def test_a_chunk_is_executed_from_the_tick_of_its_observation() -> None:
    queue = ChunkQueue()
    queue.put(chunk(5, 6, 7), tick=3)
    assert queue.get(2) is None
    assert [float(queue.get(tick)[0]) for tick in (3, 4, 5)] == [5, 6, 7]
    assert queue.get(6) is None
    assert [queue.left(tick) for tick in (3, 4, 5, 6, 9)] == [3, 2, 1, 0, 0]
    assert [queue.age(tick) for tick in (3, 5, 9)] == [0, 2, 6]


def test_a_new_chunk_replaces_what_is_left_and_its_past_is_skipped() -> None:
    queue = ChunkQueue()
    queue.put(chunk(5, 6, 7), tick=3)
    queue.put(chunk(10, 11, 12), tick=4)  # arrives at tick 5
    assert float(queue.get(5)[0]) == 11
    assert queue.left(5) == 2


def test_a_chunk_that_comes_after_its_last_action_holds_nothing() -> None:
    queue = ChunkQueue()
    queue.put(chunk(5, 6), tick=0)
    assert queue.get(2) is None
    assert queue.left(2) == 0


def test_what_is_left_from_a_tick_on_is_handed_out_in_order() -> None:
    queue = ChunkQueue()
    assert queue.rest(0).shape == (0, 0)
    queue.put(chunk(5, 6, 7), tick=3)
    assert [queue.rest(tick).ravel().tolist() for tick in (3, 5, 6, 2)] == [[5, 6, 7], [7], [], []]


@pytest.mark.parametrize("kind", [ChunkQueue, Ensemble])
def test_the_chunk_behind_an_action_is_known_with_its_times(kind: type[ChunkQueue | Ensemble]) -> None:
    queue, old, new = kind(), chunk(5, 6, 7), chunk(10, 11)
    assert queue.source(0) is None
    queue.put(old, tick=3)
    assert [queue.source(tick) for tick in (2, 3, 5, 6)] == [None, old, old, None]
    queue.put(new, tick=4)
    assert queue.source(4) is queue.source(5) is new


# Averages


def test_an_ensemble_of_one_chunk_is_a_queue() -> None:
    queue, ensemble = ChunkQueue(), Ensemble()
    for kind in (queue, ensemble):
        kind.put(chunk(5, 6, 7), tick=3)
    for tick in range(2, 8):
        assert ensemble.get(tick) == queue.get(tick)
        assert ensemble.age(tick) == queue.age(tick)
        assert ensemble.rest(tick).tolist() == queue.rest(tick).tolist()
    assert [ensemble.left(tick) for tick in (3, 4, 5, 6, 9)] == [3, 2, 1, 0, 0]


def test_the_chunks_that_cover_a_tick_are_averaged_the_oldest_counting_most() -> None:
    ensemble = Ensemble(m=np.log(2))  # weights 1, 1/2, 1/4
    ensemble.put(chunk(0, 0, 0, 7), tick=0)
    ensemble.put(chunk(3, 7, 14), tick=1)
    ensemble.put(chunk(7, 7), tick=2)
    assert [ensemble.get(tick) for tick in (0, 1)] == [0, 1]
    assert ensemble.get(2) == pytest.approx([(0 + 7 / 2 + 7 / 4) / 1.75])
    assert ensemble.get(3) == pytest.approx([(7 + 14 / 2 + 7 / 4) / 1.75])
    assert ensemble.get(4) is None
    assert ensemble.rest(2)[:, 0] == pytest.approx([3, 9])
    assert (ensemble.left(2), ensemble.age(3)) == (2, 1)


def test_chunks_that_agree_are_averaged_to_what_they_agree_on() -> None:
    ensemble, line = Ensemble(), np.arange(40)
    for tick in range(0, 20, 3):
        ensemble.put(chunk(*line[tick : tick + 11]), tick)
    assert ensemble.rest(18)[:, 0] == pytest.approx(line[18:29])


def test_an_ensemble_forgets_chunks_that_are_over() -> None:
    ensemble = Ensemble()
    for tick in range(1000):
        ensemble.put(chunk(1, 2, 3), tick)
    assert len(ensemble._chunks) == 3


# Smoothness


def positions(*values: float) -> NDArray[np.float32]:
    """Of two dimensions, of which one moves and the other does half as much in the other direction."""
    return np.array(values, np.float32)[:, None] * np.array([1.0, -0.5], np.float32)


def test_a_constant_velocity_has_no_jerk() -> None:
    found = transitions(positions(*range(0, 40, 4)), [0, 3, 7], hz=10.0)
    assert found == Transitions(
        border_step=4.0,
        inner_step=4.0,
        border_jerk_rms=0.0,
        border_jerk_max=0.0,
        inner_jerk_rms=0.0,
        inner_jerk_max=0.0,
    )


def test_a_step_between_chunks_is_found_at_the_border_and_nowhere_else() -> None:
    found = transitions(positions(0, 0, 0, 0, 2, 2, 2, 2, 2), [0, 4], hz=10.0)
    assert (found.border_step, found.inner_step) == (2.0, 0.0)
    size = 2.0 * np.hypot(1, 0.5) * 1000  # third differences of a step of 1: 1, -2, 1
    assert found.border_jerk_max == pytest.approx(2 * size)
    assert found.border_jerk_rms == pytest.approx(size * np.sqrt((1 + 4 + 1) / 3))
    assert (found.inner_jerk_rms, found.inner_jerk_max) == (0.0, 0.0)


def test_a_step_within_a_chunk_does_not_count_as_one_between_chunks() -> None:
    found = transitions(positions(0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2), [0, 8], hz=10.0)
    assert (found.border_step, found.inner_step) == (0.0, 2.0)
    assert found.border_jerk_max == 0.0
    assert found.inner_jerk_max == pytest.approx(4000 * np.hypot(1, 0.5))


def test_a_cubic_has_the_jerk_that_calculus_gives_it() -> None:
    seconds = np.arange(12) / 4.0
    found = transitions((2 * seconds**3)[:, None].astype(np.float32), [5], hz=4.0)
    assert (found.border_jerk_rms, found.inner_jerk_max) == (pytest.approx(12.0), pytest.approx(12.0))


@pytest.mark.parametrize("ticks", [1, 2, 3])
def test_an_episode_too_short_for_a_jerk_has_none(ticks: int) -> None:
    found = transitions(positions(*range(ticks)), [0, 1, 9], hz=10.0)
    assert (found.border_jerk_max, found.inner_jerk_rms) == (0.0, 0.0)
    assert found.border_step == float(ticks > 1)
