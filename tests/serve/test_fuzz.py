"""A server among peers that send it what nobody means: tests/serve/mutants.py says what.

TAILORBIRD_FUZZ is how many; `make fuzz` sends a hundred thousand. What is wrong is named by its number, and
`mutants.frame(number)` is it.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from mutants import PICTURE, STATE, array, frame
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tiny_server import Server, serving, write_tiny

NUM = int(os.environ.get("TAILORBIRD_FUZZ", "1300"))
PEERS = 8
ANSWERED_S = 20.0
INSIDES = ("Traceback", "site-packages", ".py")  # of the server, which are nobody's business
CLEAR = {1002, 1007, 1008, 1009}  # the peer broke the protocol, sent bad data, broke a rule, or sent too much
HARDLY_GROWS_MIB = 24.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(write_tiny(tmp_path / "policy"), "--max-rate-hz", "1000000") as one:
        yield one


def hello(number: int) -> bytes:
    return msgpack.packb({"type": "hello", "payload": {}, "seq": number, "timestamp": 0.0})


async def open_peer(server: Server) -> ClientConnection:
    peer = await connect(server.url, compression=None)
    await peer.recv()
    await peer.send(hello(0))  # the greeting has answered it; from now on each has an answer of its own
    return peer


async def outcome(peer: ClientConnection, number: int) -> str:
    """How the server took a frame: it goes on to answer, or says why not."""
    try:
        await peer.send(frame(number))
        await peer.send(hello(number + 1))
        while True:
            said = await peer.recv()
            if isinstance(said, str):
                assert not any(word in said for word in INSIDES), (number, said)
                continue
            told = msgpack.unpackb(said)
            if told.get("type") == "hello" and told["seq"] == number + 1:
                return "answered"
    except ConnectionClosed as closed:
        end = closed.rcvd
    assert end is not None, f"{number} ended a connection without a word"
    assert end.code in CLEAR, (number, end)
    assert end.reason, (number, end)
    return str(end.code)


async def fuzz(server: Server, numbers: range, found: Counter[str]) -> None:
    peer = await open_peer(server)
    try:
        for number in numbers:
            async with asyncio.timeout(ANSWERED_S):
                found[said := await outcome(peer, number)] += 1
                if said != "answered":
                    peer = await open_peer(server)
    finally:
        await peer.close()


async def drive(server: Server, done: asyncio.Event) -> list[Any]:
    """A robot that is well. Each question is answered, in time."""
    seen = {
        "observation/image": array(PICTURE),
        "observation/state": array(STATE),
        "prompt": "reach the cube",
    }
    actions = []
    async with connect(server.url, compression=None) as robot:
        await robot.recv()
        while not done.is_set():
            async with asyncio.timeout(ANSWERED_S):
                await robot.send(msgpack.packb(seen))
                told = msgpack.unpackb(await robot.recv(), strict_map_key=False)
            actions.append(np.frombuffer(told["actions"][b"data"], np.float32))
            await asyncio.sleep(0.02)
    return actions


async def attack(server: Server, numbers: range) -> tuple[Counter[str], list[Any]]:
    done, found = asyncio.Event(), Counter[str]()
    async with asyncio.TaskGroup() as group:
        robot = group.create_task(drive(server, done))
        peers = [group.create_task(fuzz(server, numbers[first::PEERS], found)) for first in range(PEERS)]
        await asyncio.gather(*peers)
        done.set()
    return found, robot.result()


def test_no_frame_ends_the_server_or_a_well_peers_answers(server: Server) -> None:
    warm = NUM // 4
    asyncio.run(attack(server, range(warm)))
    before = server.rss_mib()
    found, actions = asyncio.run(attack(server, range(warm, NUM)))
    grown = server.rss_mib() - before
    print(f"\n{NUM} frames: {dict(found)}, a well peer beside them {len(actions)}; {grown:+.1f} MiB")
    assert found["answered"] > NUM / 20
    assert found["1007"] > NUM / 10
    assert all(one.shape == (14,) and np.isfinite(one).all() for one in actions)
    assert len(actions) > 10
    assert grown < HARDLY_GROWS_MIB
    assert server.process.poll() is None


def test_a_mutant_is_the_same_in_every_run() -> None:
    assert [frame(number) for number in range(60)] == [frame(number) for number in range(60)]
