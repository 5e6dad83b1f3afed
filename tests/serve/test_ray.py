"""Jobs and policies on a real cluster of Ray, which takes seconds to start and so is started once."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from ray_jobs import die, die_once, fail, slow_policy, square
from websockets.asyncio.client import connect

from tailorbird.codec import Caps, Tag, decode_answer, encode_observation, unpack
from tailorbird.errors import ConfigError, DataError, SimulatorError
from tailorbird.evals.config import RolloutConfig
from tailorbird.evals.rollout import Run, rollouts
from tailorbird.infer.policy import load_policy
from tailorbird.serve.batcher import Job, Robot
from tailorbird.serve.config import ServeConfig
from tailorbird.serve.policy import PolicyServer
from tailorbird.serve.replicas import AWAY, replicas
from tailorbird.sim.config import SimConfig
from tailorbird.sim.ray_pool import ray_cluster, run_on_ray
from tailorbird.wire import ActionChunk, Observation
from tiny_server import write_tiny

# Ray's own: deprecated pydantic, and sockets and processes that it leaves to the operating system
pytestmark = pytest.mark.filterwarnings("default")


SEEN = Observation(
    images={"top": np.full((9, 11, 3), 70, np.uint8)}, state=np.zeros(4, np.float32), task="reach the cube"
)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        here = Path(__file__).parent  # Ray's processes import this file
        patch.setenv("PYTHONPATH", f"{here}{os.pathsep}{here.parent}")
        with ray_cluster("local", 2) as module:
            yield module


def test_results_come_in_the_order_of_the_jobs_and_from_other_processes(ray: Any) -> None:
    taken = itertools.count()
    results = run_on_ray(square, taken, 2, "local")
    first = [next(results) for _ in range(9)]
    results.close()
    assert [(job, found) for job, (found, _) in first] == [(n, n * n) for n in range(9)]
    assert os.getpid() not in {pid for _, (_, pid) in first}
    assert next(taken) < 20, "jobs are taken lazily, so that results can end them"


def test_an_error_in_a_job_arrives_as_itself_after_the_results_before_it(ray: Any) -> None:
    seen = []
    with pytest.raises(DataError, match=r"^job three is impossible$"):  # noqa: PT012
        for job, _ in run_on_ray(fail, range(9), 2, "local"):
            seen.append(job)
    assert seen == [0, 1, 2]


def test_a_job_whose_process_dies_is_run_again(ray: Any, tmp_path: Path) -> None:
    done = run_on_ray(partial(die_once, here=str(tmp_path)), range(5), 2, "local")
    assert [found for _, found in done] == [0, 1, 2, 3, 4]


def test_a_job_that_always_dies_is_an_error_that_says_what_to_try(ray: Any) -> None:
    with pytest.raises(SimulatorError, match=r"lost a simulator \(WorkerCrashedError\); .* fewer --workers"):
        list(run_on_ray(die, range(1), 2, "local"))


def test_episodes_on_ray_are_those_of_this_machine(ray: Any, tmp_path: Path) -> None:
    policy = write_tiny(tmp_path / "policy", state_dim=4, action_dim=4, cameras=("corner2",))
    cfg = RolloutConfig(seeds=2, max_s=0.4, film_size=64, sim=SimConfig(size=48))
    runs = {"it": Run(policy=policy, cfg=cfg)}
    ((_, ours),), ((_, theirs),) = (list(rollouts(runs, 1, where)) for where in (None, "local"))
    for here, there in zip(ours, theirs, strict=True):
        assert here.actions == there.actions
        assert replace(here, chunk_ms=[]) == replace(there, chunk_ms=[])


async def robots_of(policy: Path, copies: Any, die: Callable[[], None]) -> list[list[NDArray[np.float32]]]:
    """What three robots are told by a server with copies, of which one dies after two answers."""
    stop, told = asyncio.Event(), asyncio.get_running_loop().create_future()
    server = PolicyServer(load_policy(policy, device="cpu"), ServeConfig(port=0), copies)
    running = asyncio.create_task(server.run(stop, told.set_result))
    url = await told
    async with AsyncExitStack() as stack:
        robots = [await stack.enter_async_context(connect(url, proxy=None)) for _ in range(3)]
        heard: list[list[NDArray[np.float32]]] = [[] for _ in robots]
        for robot in robots:
            await robot.recv()
        for nth in range(5):
            if nth == 2:
                die()
            for number, robot in enumerate(robots):
                await robot.send(encode_observation(SEEN, Tag()))
                answered = decode_answer(unpack(cast(bytes, await robot.recv()), Caps()))
                assert answered.chunk is not None, (nth, number, answered)
                heard[number].append(answered.chunk.actions)
    stop.set()
    await running
    return heard


def test_a_robot_is_answered_the_same_by_whichever_copy_lives(ray: Any, tmp_path: Path) -> None:
    policy = write_tiny(tmp_path / "policy")
    own = load_policy(policy, device="cpu")
    due = [own.act(SEEN).actions for _ in range(5)]
    with replicas(partial(load_policy, policy, device="cpu"), 2) as copies:
        pids = [copies.process(number) for number in range(2)]
        heard = asyncio.run(robots_of(policy, copies, lambda: os.kill(pids[0], signal.SIGKILL)))
        assert pids[0] != pids[1]
        assert 0 not in copies.up or copies.process(0) not in pids
    for one in heard:
        np.testing.assert_allclose(one, due, rtol=1e-5, atol=1e-5)


def test_a_copy_that_thinks_for_long_is_not_lost_and_one_that_is_deleted_is_away(
    ray: Any, tmp_path: Path
) -> None:
    policy = write_tiny(tmp_path / "policy")
    own = load_policy(policy, device="cpu")
    robot = Robot(own.new_session)
    job = Job(
        robot=robot,
        session=robot.session,
        generation=0,
        seen=SEEN,
        came_s=0.0,
        due_s=1e12,
        deliver=lambda _: None,
    )
    with replicas(partial(slow_policy, policy, 1.5), 1, timeout_s=0.4) as copies:
        (answer,) = copies.computes[0]([job], robot.session.noise())
        assert isinstance(answer, ActionChunk)
        assert copies.up == {0}
        ray.serve.delete("tailorbird-0")
        assert copies.computes[0]([job], robot.session.noise()) == [AWAY]


def test_a_cluster_that_is_not_there_is_explained() -> None:
    code = """
from tailorbird.sim.ray_pool import run_on_ray
list(run_on_ray(print, range(1), 2, "127.0.0.1:9"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ConfigError: there is no Ray cluster at '127.0.0.1:9': start one with" in done.stderr


def test_no_workers_at_all_are_refused() -> None:
    with pytest.raises(ConfigError, match="workers=0 must be at least 1"):
        list(run_on_ray(square, range(2), 0, "local"))
