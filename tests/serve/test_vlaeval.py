"""vla-eval's protocol: one action for each observation, in step and live."""

import io
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
from PIL import Image
from websockets.sync.client import ClientConnection

from served_here import SOON_S, Watched, expected, hear, look, meet, plain, serving, taken
from tailorbird.codec import pack
from tailorbird.wire import Observation


@pytest.fixture(scope="module")
def policy() -> Watched:
    return Watched()


@pytest.fixture(scope="module")
def url(policy: Watched) -> Iterator[str]:
    with serving(policy, execute=4) as address:
        yield address


def say(robot: ClientConnection, kind: str, payload: Any, seq: int) -> None:
    message = {"type": kind, "payload": payload, "seq": seq, "timestamp": 0.0}
    robot.send(pack(message, text_keys=True))


def show(robot: ClientConnection, seen: Observation, seq: int, *, as_png: bool = True) -> None:
    """Pictures as PNG files, as the harness sends them by default, or as arrays."""
    images: dict[str, Any] = dict(seen.images)
    for name, picture in seen.images.items() if as_png else ():
        file = io.BytesIO()
        Image.fromarray(picture).save(file, format="PNG")
        images[name] = {
            "__image__": True,
            "format": "png",
            "data": file.getvalue(),
            "shape": list(picture.shape),
        }
    say(robot, "observation", {"images": images, "states": seen.state, "task_description": seen.task}, seq)


def test_the_greeting_answers_the_hello_that_crosses_it(url: str) -> None:
    with meet(url) as robot:
        say(robot, "hello", {"harness_version": "0.8.0", "protocol_version": 1}, 1)
        hello = hear(robot)
        assert hello["type"] == "hello"
        assert {"seq", "timestamp"} <= hello.keys()
        assert hello["payload"]["protocol_version"] == 1
        assert hello["payload"]["observation_params"] == {"send_state": True, "send_wrist_image": True}
        assert "harness_version" in hello["payload"]
        say(robot, "hello", {}, 9)
        assert hear(robot)["seq"] == 9


def test_in_step_each_observation_gets_the_next_action(policy: Watched, url: str) -> None:
    with meet(url) as robot:
        hear(robot)
        say(robot, "episode_start", {"task": {"name": "t"}}, 1)
        chunks = [expected(policy, look(at), policy.noise(0, nth)) for nth, at in enumerate((0, 4))]
        for seq in range(6):
            show(robot, look(seq), 10 + seq)
            answer = hear(robot)
            assert (answer["type"], answer["seq"]) == ("action", 10 + seq)
            action = chunks[seq // 4][seq % 4]
            np.testing.assert_allclose(answer["payload"]["actions"], action, rtol=0, atol=1e-5)
        say(robot, "episode_end", {}, 20)
        say(robot, "episode_start", {"task": {"name": "t"}}, 21)
        show(robot, look(0), 22)
        np.testing.assert_allclose(hear(robot)["payload"]["actions"], chunks[0][0], rtol=0, atol=1e-5)


def test_live_the_actions_whose_ticks_are_past_are_dropped(policy: Watched, url: str) -> None:
    with meet(url) as robot:
        hear(robot)
        say(robot, "episode_start", {"mode": "live"}, 1)
        policy.shut()
        show(robot, look(0), 2)
        assert policy.entered.wait(SOON_S)
        with taken(url, 2):
            show(robot, look(1), 3, as_png=False)
            show(robot, look(2), 4, as_png=False)
        policy.gate.set()
        chunk = expected(policy, look(0), policy.noise(0))
        first = hear(robot)
        np.testing.assert_allclose(first["payload"]["actions"], chunk[2], rtol=0, atol=1e-5)
        show(robot, look(3), 5)
        second = hear(robot)
        np.testing.assert_allclose(second["payload"]["actions"], chunk[3], rtol=0, atol=1e-5)
        assert (first["seq"], second["seq"]) == (2, 5)
        assert len(policy.calls) == 1


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({}, "needs images by name"),
        ({"images": {"top": 3}, "states": [0.0] * 5}, "no picture from ['image']"),
        ({"images": {"top": 3, "image": 4}, "states": [0.0] * 5}, "'top' is none"),
        ({"images": {}, "task_description": 4}, "text"),
    ],
)
def test_what_cannot_be_used_is_an_error_that_names_its_number(url: str, payload: Any, message: str) -> None:
    with meet(url) as robot:
        hear(robot)
        say(robot, "observation", payload, 6)
        answer = hear(robot)
        assert (answer["type"], answer["seq"]) == ("error", 6)
        assert answer["payload"]["error"].startswith("bad-observation: ")
        assert message in answer["payload"]["error"]
        show(robot, look(), 7)
        assert hear(robot)["payload"]["actions"].shape == (4,)


def test_a_message_without_its_parts_ends_the_connection(url: str) -> None:
    with meet(url) as robot, meet(url) as openpi:
        hear(robot), hear(openpi)
        robot.send(msgpack.packb({"type": "shutdown", "payload": {}, "seq": 1}))
        with pytest.raises(Exception, match="1007"):
            hear(robot)
        openpi.send(plain(look()))
        assert hear(openpi)["actions"].shape == (7, 4)
