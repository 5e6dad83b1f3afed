"""The policy server over real sockets: answers, queues, episodes and its end."""

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

from served_here import (
    SOON_S,
    Watched,
    expected,
    free_port,
    hear,
    look,
    meet,
    page,
    plain,
    serving,
    tagged,
    taken,
)
from tailorbird.codec import MAX_TASK, TAG
from tailorbird.errors import ConfigError
from tailorbird.serve.config import ServeConfig
from tailorbird.serve.policy import PolicyServer
from tailorbird.wire import Committed


@pytest.fixture(scope="module")
def policy() -> Watched:
    return Watched()


@pytest.fixture(scope="module")
def url(policy: Watched) -> Iterator[str]:
    with serving(policy) as address:
        yield address


@pytest.fixture(autouse=True)
def _open(policy: Watched) -> Iterator[None]:
    yield
    policy.gate.set()


def test_an_answer_is_what_the_policy_says_to_the_same_noise(policy: Watched, url: str) -> None:
    with meet(url) as robot:
        greeting = hear(robot)
        assert greeting["metadata"]["cameras"] == ["top", "image"]
        for nth in range(3):
            robot.send(plain(look(nth)))
            answer = hear(robot)
            assert TAG not in answer
            assert answer["server_timing"]["infer_ms"] > 0
            same = expected(policy, look(nth), policy.noise(0, nth))
            np.testing.assert_allclose(answer["actions"], same, rtol=0, atol=1e-5)


def test_sessions_that_wait_together_are_one_call_and_keep_their_own_noises(
    policy: Watched, url: str
) -> None:
    with meet(url) as first, meet(url) as second, meet(url) as third:
        robots = [first, second, third]
        for robot in robots:
            hear(robot)
        policy.shut()
        first.send(tagged(look(1), seq=1, reset=11))
        assert policy.entered.wait(SOON_S)
        with taken(url, 2):
            second.send(tagged(look(2), seq=1, reset=12))
            third.send(tagged(look(3), seq=1, reset=13))
        policy.gate.set()
        for number, robot in enumerate(robots, 1):
            answer = hear(robot)
            same = expected(policy, look(number), policy.noise(10 + number))
            np.testing.assert_allclose(answer["actions"], same, rtol=0, atol=1e-4)
            assert answer[TAG]["time_s"] == number
        assert [len(call) for call in policy.calls[:2]] == [1, 2]


def test_a_newer_observation_takes_the_place_of_one_that_waits(policy: Watched, url: str) -> None:
    with meet(url) as robot:
        hear(robot)
        policy.shut()
        robot.send(tagged(look(1), seq=1))
        assert policy.entered.wait(SOON_S)
        for seq in (2, 3, 4):
            robot.send(tagged(look(seq), seq=seq))
        dropped = [hear(robot) for _ in range(2)]
        policy.gate.set()
        answered = [hear(robot) for _ in range(2)]
        assert [(one["error"]["code"], one[TAG]["seq"]) for one in dropped] == [
            ("superseded", 2),
            ("superseded", 3),
        ]
        assert [one[TAG]["seq"] for one in answered] == [1, 4]
        assert len(policy.calls) == 2


def test_what_waited_beyond_its_deadline_is_not_computed(policy: Watched, url: str) -> None:
    with meet(url) as busy, meet(url) as robot:
        hear(busy), hear(robot)
        policy.shut()
        busy.send(plain(look(1)))
        assert policy.entered.wait(SOON_S)
        with taken(url, 1):
            robot.send(tagged(look(2), seq=5, deadline_ms=1.0))
        time.sleep(0.002)
        policy.gate.set()
        late = hear(robot)
        assert (late["error"]["code"], late[TAG]["seq"]) == ("late", 5)
        hear(busy)
        assert len(policy.calls) == 1


def test_a_reset_makes_answers_of_the_old_episode_undeliverable(policy: Watched, url: str) -> None:
    with meet(url) as robot:
        hear(robot)
        policy.shut()
        robot.send(tagged(look(1), seq=1, generation=0))
        assert policy.entered.wait(SOON_S)
        robot.send(tagged(look(2), seq=2, generation=0))
        robot.send(tagged(look(3), seq=3, generation=1, reset=7))
        waiting = hear(robot)
        policy.gate.set()
        running, new = hear(robot), hear(robot)
        assert [one["error"]["code"] for one in (waiting, running)] == ["old-episode"] * 2
        same = expected(policy, look(3), policy.noise(7))
        np.testing.assert_allclose(new["actions"], same, rtol=0, atol=1e-5)
        robot.send(tagged(look(4), seq=4, generation=0))
        assert hear(robot)["error"]["code"] == "old-episode"


def test_a_session_that_is_played_again_is_refused(policy: Watched, url: str) -> None:
    with meet(url) as robot:
        session = hear(robot)["session"]
        recorded = tagged(look(1), seq=1, session=session)
        robot.send(recorded)
        hear(robot)
        robot.send(recorded)
        with pytest.raises(ConnectionClosed, match=r"1008.*sent before"):
            hear(robot)
    with meet(url) as robot:
        hear(robot)
        robot.send(recorded)
        with pytest.raises(ConnectionClosed, match=r"1008.*another connection"):
            hear(robot)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images": {"top": look().images["top"]}}, r"no picture from \['image'\].*\['top'\]"),
        ({"images": {**look().images, "top": np.zeros((20, 30), np.uint8)}}, r"'top' is \[20, 30\] uint8"),
        ({"images": {**look().images, "top": np.full((2, 3, 3), np.nan)}}, "'top' is .* float64"),
        ({"images": {**look().images, "top": np.zeros((0, 3, 3), np.uint8)}}, "'top' is"),
        ({"state": np.array([1, 2, np.nan, 3, 4], np.float32)}, "5 finite state values"),
        ({"state": np.zeros(6, np.float32)}, r"5 finite state values, got shape \[6\]"),
        ({"state": np.array([1, 2, 3, 4, 5], np.float32)}, "state value 4 is 5"),
        ({"committed": Committed(actions=np.zeros((2, 3), np.float32), frozen=1)}, r"committed actions"),
        ({"task": "go " * MAX_TASK}, "12288 characters: at most 4096"),
    ],
)
def test_an_observation_that_cannot_be_used_is_its_sender_s_own_matter(
    url: str, wrong: dict[str, object], message: str
) -> None:
    with meet(url) as robot:
        hear(robot)
        robot.send(tagged(look(**wrong), seq=1))
        error = hear(robot)["error"]
        assert error["code"] == "bad-observation"
        assert re.search(message, error["message"])
        robot.send(tagged(look(), seq=2))
        assert hear(robot)["actions"].shape == (7, 4)


def test_one_bad_observation_of_a_batch_costs_the_others_nothing(policy: Watched, url: str) -> None:
    moved = replace(look(2), state=np.array([1, 2, 3, 4, 5], np.float32))  # only the policy itself sees that
    with meet(url) as busy, meet(url) as bad, meet(url) as good:
        for robot in (busy, bad, good):
            hear(robot)
        policy.shut()
        busy.send(plain(look(1)))
        assert policy.entered.wait(SOON_S)
        with taken(url, 2):
            bad.send(plain(moved))
            good.send(plain(look(3)))
        policy.gate.set()
        assert hear(bad).startswith("bad-observation: state value 4 is 5")
        same = expected(policy, look(3), policy.noise(0))
        np.testing.assert_allclose(hear(good)["actions"], same, rtol=0, atol=1e-5)
        assert len(policy.calls[1]) == 2


def test_what_fails_inside_is_told_without_its_insides(
    policy: Watched, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("/home/somebody/secret")

    with meet(url) as robot:
        hear(robot)
        monkeypatch.setattr(policy, "act_batch", fail)
        robot.send(plain(look()))
        assert hear(robot) == "internal: the policy failed on this observation; the server's log says why"
        assert "secret" in caplog.text
        monkeypatch.undo()
        robot.send(plain(look()))
        assert hear(robot)["actions"].shape == (7, 4)


def test_what_the_engine_cannot_do_is_the_robots_own_matter(
    policy: Watched, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ConfigError("the engine graphs cannot be guided: take the engine torch")

    with meet(url) as robot:
        hear(robot)
        monkeypatch.setattr(policy, "act_batch", refuse)
        robot.send(plain(look()))
        assert hear(robot) == "bad-request: the engine graphs cannot be guided: take the engine torch"


def test_many_observations_in_one_write_are_all_answered(policy: Watched, url: str) -> None:
    with meet(url) as robot:
        hear(robot)
        robot.socket.sendall(
            b"".join(
                Frame(Opcode.BINARY, tagged(look(), seq=seq)).serialize(mask=True) for seq in range(1, 41)
            )
        )
        heard = [hear(robot)[TAG]["seq"] for _ in range(40)]
        assert sorted(heard) == [*range(1, 41)]


def test_a_call_of_an_old_episode_leaves_no_picture_to_the_next() -> None:
    policy = Watched()
    policy.session.views.max_age_s = 5.0
    with serving(policy) as url, meet(url) as robot:
        hear(robot)
        policy.shut()
        robot.send(tagged(look(1, time_s=1.0), seq=1, generation=0))
        assert policy.entered.wait(SOON_S)
        with taken(url, 1):
            robot.send(tagged(look(2, time_s=1.5, images={}), seq=2, generation=1))
        policy.gate.set()
        old, new = hear(robot), hear(robot)
        assert old["error"]["code"] == "old-episode"
        assert "no picture" in new["error"]["message"]


def test_committed_actions_reach_the_policy(policy: Watched, url: str) -> None:
    committed = Committed(actions=np.arange(8, dtype=np.float32).reshape(2, 4), frozen=1)
    policy.calls.clear()
    with meet(url) as robot:
        hear(robot)
        robot.send(tagged(look(committed=committed, image_time_s={"top": -0.5}), seq=1))
        answer = hear(robot)
        assert answer[TAG]["scene_time_s"] == -0.5
    (seen,) = policy.calls[0]
    assert seen.committed is not None
    np.testing.assert_array_equal(seen.committed.actions, committed.actions)


def test_a_policy_with_one_camera_takes_the_one_picture_by_whatever_name() -> None:
    policy = Watched(cameras=("top",), lerobot=None)
    with serving(policy) as url, meet(url) as robot:
        hear(robot)
        seen = look(images={"wrist": look().images["top"]}, image_time_s={"wrist": -4.0})
        robot.send(tagged(seen, seq=1))
        same = expected(policy, look(images={"top": look().images["top"]}), policy.noise(0))
        answer = hear(robot)
        np.testing.assert_allclose(answer["actions"], same, rtol=0, atol=1e-5)
        assert answer[TAG]["scene_time_s"] == -4.0


def test_pages_say_whether_it_is_warm_and_what_it_did(policy: Watched, url: str) -> None:
    assert page(url, "/healthz") == page(url, "/health") == "OK\n"
    told = page(url, "/metrics")
    for name in ("queue_seconds", "model_seconds", "total_seconds", "batch_size", "sessions", "dropped"):
        assert f"tailorbird_{name}" in told


def test_while_it_warms_up_nobody_is_let_in() -> None:
    policy = Watched()
    policy.shut()
    found: list[str] = []
    port = free_port()

    def start() -> None:
        with serving(policy, port=port) as url:
            found.append(page(url, "/healthz"))

    thread = threading.Thread(target=start)
    thread.start()
    assert policy.entered.wait(SOON_S)
    with pytest.raises(OSError, match="503"):
        page(f"ws://127.0.0.1:{port}", "/healthz")
    with pytest.raises(InvalidStatus, match="503"), meet(f"ws://127.0.0.1:{port}"):
        pass
    policy.gate.set()
    thread.join(SOON_S)
    assert found == ["OK\n"]


def test_an_ending_server_finishes_what_runs_and_says_goodbye() -> None:
    policy, server = Watched(), ExitStack()
    url = server.enter_context(serving(policy))
    with meet(url) as runs, meet(url) as idles:
        hear(runs), hear(idles)
        policy.shut()
        runs.send(plain(look()))
        assert policy.entered.wait(SOON_S)
        threading.Timer(0.1, policy.gate.set).start()
        server.close()
        assert hear(runs)["actions"].shape == (7, 4)
        for one in (runs, idles):
            with pytest.raises(ConnectionClosed, match=r"1001.*shutting down"):
                hear(one)


async def ended_after(policy: Watched, *, is_warm: bool) -> float:
    """Seconds that a server takes to end whose model hangs."""
    stop, told = asyncio.Event(), asyncio.get_running_loop().create_future()
    server = PolicyServer(policy, ServeConfig(port=0, grace_s=0.2))
    if not is_warm:
        policy.shut()
    running = asyncio.create_task(server.run(stop, told.set_result))
    if is_warm:
        url = await told
        policy.shut()
        with await asyncio.to_thread(lambda: meet(url)) as robot:
            await asyncio.to_thread(hear, robot)
            robot.send(plain(look()))
            assert await asyncio.to_thread(policy.entered.wait, SOON_S)
            began = time.monotonic()
            stop.set()
            await running
            return time.monotonic() - began
    assert await asyncio.to_thread(policy.entered.wait, SOON_S)
    began = time.monotonic()
    stop.set()
    await running
    assert not told.done()
    return time.monotonic() - began


@pytest.mark.parametrize("is_warm", [True, False], ids=["serving", "warming-up"])
def test_a_model_that_hangs_keeps_no_server_from_ending(is_warm: bool) -> None:
    policy = Watched()
    try:
        assert asyncio.run(ended_after(policy, is_warm=is_warm)) < 5.0
    finally:
        policy.gate.set()
