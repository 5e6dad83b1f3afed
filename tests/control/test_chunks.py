"""The actions that are still to be executed."""

import numpy as np

from tailorbird.control.chunks import ChunkQueue
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
