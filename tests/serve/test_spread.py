"""Which of several copies of a policy a robot's observations go to."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from torch import Tensor

from tailorbird.errors import ConfigError
from tailorbird.infer.session import Session
from tailorbird.serve.answer import Worker
from tailorbird.serve.batcher import Batcher, Job, Refusal, Robot
from tailorbird.serve.metrics import Metrics
from tailorbird.serve.replicas import replicas
from tailorbird.serve.spread import Spread
from tailorbird.wire import ActionChunk, Observation

LATER = 1e12


def newcomer() -> Robot:
    return Robot(lambda: Session(3, 2))


async def homes(spread: Spread, robots: list[Robot]) -> list[str]:
    """The copy that answers each; a copy's answer is a refusal with its name."""
    loop = asyncio.get_running_loop()
    answers = []
    for robot in robots:
        told = loop.create_future()
        seen = Observation(images={}, state=np.zeros(2, np.float32), task="")
        deliver = told.set_result
        spread.submit(
            Job(
                robot=robot,
                session=robot.session,
                generation=-1,
                seen=seen,
                came_s=0.0,
                due_s=LATER,
                deliver=deliver,
            )
        )
        answers.append(told)
    return [(await told).code for told in answers]


async def story() -> dict[str, list[str]]:
    with ThreadPoolExecutor(2) as worker:

        def named(name: str) -> Batcher:
            def compute(jobs: list[Job], noise: Tensor) -> list[ActionChunk | Refusal]:
                return [Refusal(name, "")] * len(jobs)

            return Batcher(compute, worker, Metrics(), 4)

        spread = Spread([named("first"), named("second")])
        running = asyncio.create_task(spread.run())
        old, told = [newcomer() for _ in range(4)], {}
        told["at first"] = await homes(spread, old)
        told["again"] = await homes(spread, old[::-1])
        spread.set_up(0, False)
        told["one is lost"] = await homes(spread, old)
        spread.set_up(0, True)
        told["it is back"] = await homes(spread, old)
        told["newcomers"] = await homes(spread, [newcomer() for _ in range(2)])
        assert await spread.drain(1.0)
        running.cancel()
    return told


def test_robots_stay_where_they_are_until_their_copy_is_lost() -> None:
    told = asyncio.run(story())
    assert told["at first"] == ["first", "second", "first", "second"]
    assert told["again"] == ["second", "first", "second", "first"]
    assert told["one is lost"] == told["it is back"] == ["second"] * 4
    assert told["newcomers"][0] == "first"


async def crowd() -> list[str]:
    """Who answers a robot whose copy is lost while it waits in its queue, and one whose batch fails."""
    gate = threading.Event()
    workers = Worker(), Worker()

    def slow(jobs: list[Job], noise: Tensor) -> list[ActionChunk | Refusal]:
        gate.wait()
        raise RuntimeError("a copy fails")

    def quick(jobs: list[Job], noise: Tensor) -> list[ActionChunk | Refusal]:
        return [Refusal("second", "")] * len(jobs)

    spread = Spread(
        [Batcher(one, worker, Metrics(), 1) for one, worker in zip((slow, quick), workers, strict=True)]
    )
    running = asyncio.create_task(spread.run())
    robots = [newcomer() for _ in range(3)]  # of which the first and the last are at home with the first copy
    asked = [asyncio.create_task(homes(spread, [robot])) for robot in robots]
    await asked[1]
    spread.set_up(0, False)
    moved = await asked[2]
    gate.set()
    told = [await asked[0], moved, await homes(spread, [robots[0]])]
    running.cancel()
    for worker in workers:
        worker.shutdown()
    return [one for (one,) in told]


def test_what_waits_for_a_lost_copy_is_moved_and_a_failure_ends_nobodys_turn() -> None:
    assert asyncio.run(crowd()) == ["internal", "second", "second"]


def test_no_copies_at_all_are_refused() -> None:
    with pytest.raises(ConfigError, match="0 copies of the policy can answer nobody"), replicas(print, 0):
        pass
