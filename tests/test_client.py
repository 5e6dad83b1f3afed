"""The client on the robot's computer, with real servers that come and go."""

import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.sync.server import ServerConnection, serve

from lerobot_folder import write_folder
from served_here import SOON_S, Watched, expected, free_port, look, self_signed, serving
from tailorbird.client import CLOSE_S, PolicyClient
from tailorbird.codec import pack
from tailorbird.errors import ConfigError, ConnectionLost, DataError, TailorbirdError
from tailorbird.wire import Observation

KEY = "a-key-that-is-long-enough"


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


@contextmanager
def other_server(meet: Callable[[ServerConnection], None], **options: Any) -> Iterator[str]:
    """A server that is not ours, for what ours would not do."""
    with serve(
        meet, "127.0.0.1", 0, compression=None, max_size=None, max_queue=1, close_timeout=0.1, **options
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        kind = "wss" if "ssl" in options else "ws"
        yield f"{kind}://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join(SOON_S)


def calling(client: PolicyClient, seen: Observation) -> tuple[threading.Thread, list[object]]:
    """A thread that calls, and what comes of that."""
    told: list[object] = []

    def call() -> None:
        try:
            told.append(client(seen))
        except TailorbirdError as error:
            told.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    return thread, told


def greet(robot: ServerConnection, **metadata: object) -> None:
    robot.send(pack({"session": "a", "metadata": metadata}))


def test_a_chunk_from_afar_is_the_policys_own(policy: Watched, url: str) -> None:
    with closing(PolicyClient(url)) as client:
        for seed in (5, 6):
            client.reset(seed)
            for nth in range(2):
                seen = look(nth)
                chunk = client(seen)
                same = expected(policy, seen, policy.noise(seed, nth))
                np.testing.assert_allclose(chunk.actions, same, rtol=0, atol=1e-5)
                assert chunk.time_s == seen.time_s
                assert {"encode", "denoise", "queue", "wire"} <= chunk.infer_ms.keys()
        assert client.metadata["state_dim"] == 5
        assert (client.stats.answered, client.stats.connections) == (4, 1)
        assert len(client.stats.trip_ms) == 4
        assert all(a >= b for a, b in zip(client.stats.trip_ms, client.stats.server_ms, strict=True))


def test_the_robots_computer_needs_no_torch() -> None:
    code = "import sys, tailorbird.client; print({'torch', 'PIL', 'tokenizers'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_an_observation_that_the_policy_cannot_use_is_the_callers_error(url: str) -> None:
    with closing(PolicyClient(url)) as client:
        client(look())
        with pytest.raises(DataError, match=r"ws://.*no picture from"):
            client(look(images={}))
        client(look())


def test_a_late_answer_is_an_error_and_is_not_taken_for_the_next(policy: Watched, url: str) -> None:
    with closing(PolicyClient(url, timeout_s=0.5)) as client:
        client(look(0))
        policy.shut()
        with pytest.raises(ConnectionLost, match=r"did not answer within 0.5 s"):
            client(look(1))
        policy.gate.set()
        chunk = client(look(2))
        assert chunk.time_s == 2.0
        assert (client.stats.late, client.stats.connections) == (1, 1)


def test_what_is_left_of_the_last_chunk_serves_until_it_is_spent(policy: Watched, url: str) -> None:
    with closing(PolicyClient(url, timeout_s=0.3)) as client:
        chunk = client(look(0))  # of the rate that the server says, 30 a second
        policy.shut()
        for past in (2, 6):
            left = client(look(1, time_s=past / 30))
            np.testing.assert_array_equal(left.actions, chunk.actions[past:])
            assert left.time_s == 0.0
        with pytest.raises(ConnectionLost):
            client(look(1, time_s=7 / 30))
        assert (client.stats.cached, client.stats.failed) == (2, 1)


def test_no_chunk_of_an_old_episode_is_returned(policy: Watched, url: str) -> None:
    with closing(PolicyClient(url, timeout_s=0.3)) as client:
        client(look(0))
        client.reset()
        policy.shut()
        with pytest.raises(ConnectionLost):
            client(look(0))
    with closing(PolicyClient(url)) as client:
        policy.gate.set()
        client(look(0))
        policy.shut()
        ended = threading.Thread(
            target=lambda: (policy.entered.wait(SOON_S), client.reset(), policy.gate.set())
        )
        ended.start()
        with pytest.raises(ConnectionLost, match="a new episode began"):
            client(look(0, time_s=0.1))
        ended.join()


def test_a_server_that_comes_up_late_is_waited_for_and_found(policy: Watched) -> None:
    port, server = free_port(), ExitStack()
    with closing(PolicyClient(f"ws://127.0.0.1:{port}", timeout_s=SOON_S)) as client, server:
        start = threading.Timer(0.3, lambda: server.enter_context(serving(policy, port=port)))
        start.start()
        assert client(look()).actions.shape == (7, 4)
        start.join()


def test_a_client_says_what_is_wrong_with_its_address_or_its_key(policy: Watched, tmp_path: Path) -> None:
    for bad in ({"url": "http://x"}, {"timeout_s": 0.0}, {"hz": -1.0}, {"url": "ws://x", "ca": tmp_path}):
        with pytest.raises(ConfigError):
            PolicyClient(**bad)  # type: ignore[arg-type]
    nobody = PolicyClient(f"ws://127.0.0.1:{free_port()}", timeout_s=0.2)
    with closing(nobody), pytest.raises(ConnectionLost, match=r"is away .*[Rr]efused"):
        nobody(look())
    file = tmp_path / "keys"
    file.write_text(KEY)
    with serving(policy, api_key_file=file) as url:
        for wrong in (None, "another-key-long-enough"):
            with (
                closing(PolicyClient(url, api_key=wrong)) as client,
                pytest.raises(ConfigError, match="api_key="),
            ):
                client(look())
        with closing(PolicyClient(url, api_key=KEY)) as client:
            assert client(look()).actions.shape == (7, 4)


def test_over_tls_the_servers_certificate_has_to_be_known(policy: Watched, tmp_path: Path) -> None:
    cert, key = self_signed(tmp_path)
    with serving(policy, cert=cert, cert_key=key) as url:
        with closing(PolicyClient(url, ca=cert)) as client:
            assert client(look()).actions.shape == (7, 4)
        with closing(PolicyClient(url)) as client, pytest.raises(ConfigError, match=r"not trusted .* ca="):
            client(look())
    with pytest.raises(ConfigError, match="no certificate to trust"):
        PolicyClient(url, ca=tmp_path / "nothing.pem")


@pytest.mark.parametrize("is_tls", [False, True], ids=["ws", "wss"])
def test_a_server_that_has_stopped_holds_up_neither_a_call_nor_a_goodbye(
    tmp_path: Path, is_tls: bool
) -> None:
    end, options, ca = threading.Event(), dict[str, Any](), None
    if is_tls:
        ca, key = self_signed(tmp_path)
        options["ssl"] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        options["ssl"].load_cert_chain(ca, key)

    def stop(robot: ServerConnection) -> None:
        greet(robot)
        end.wait(SOON_S)

    large = look(images={"top": np.zeros((2000, 2000, 3), np.uint8)})  # more than systems keep
    with other_server(stop, **options) as url, closing(PolicyClient(url, ca=ca, timeout_s=0.3)) as client:
        client.connect()
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(ConnectionLost):
                client(large)
            assert time.monotonic() - began < 0.3 + 4 * CLOSE_S
        client.connect()
        caller, told = calling(client, large)
        time.sleep(0.1)
        began = time.monotonic()
        client.close()
        assert time.monotonic() - began < 4 * CLOSE_S
        caller.join(SOON_S)
        assert isinstance(told[0], ConnectionLost)
        end.set()


def test_a_call_that_is_connecting_when_the_client_is_closed_leaves_no_connection() -> None:
    met, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def meet(robot: ServerConnection) -> None:
        met.set()
        go_on.wait(SOON_S)
        greet(robot)
        for _ in robot:
            pass
        ended.set()

    with other_server(meet) as url, closing(PolicyClient(url, timeout_s=SOON_S)) as client:
        caller, told = calling(client, look())
        assert met.wait(SOON_S)
        client.close()
        go_on.set()
        caller.join(SOON_S)
        assert isinstance(told[0], ConnectionLost)
        assert "was closed meanwhile" in str(told[0])
        assert ended.wait(SOON_S)


def test_a_rate_or_a_seed_that_cannot_be_is_refused_at_once(url: str) -> None:
    with closing(PolicyClient(url, hz=10.0)) as client:
        with pytest.raises(ConfigError, match="30 actions a second, not 10: set hz=30"):
            client(look())
        for seed in (-1, 2**60):
            with pytest.raises(ConfigError, match="from 0 to"):
                client.reset(seed)


def test_what_answers_in_another_language_is_told_from_a_bad_observation() -> None:
    said = [b"\xc1", pack({"actions": 3}), pack({"error": {}, "tailorbird": {"seq": "x"}})]

    def babble(robot: ServerConnection) -> None:
        greet(robot)
        robot.recv()
        robot.send(said.pop())
        for _ in robot:
            pass

    with other_server(babble) as url, closing(PolicyClient(url)) as client:
        while said:
            with pytest.raises(ConnectionLost, match="does not speak our language"):
                client(look())

    with (
        other_server(lambda robot: greet(robot, hz="fast")) as url,
        closing(PolicyClient(url)) as client,
        pytest.raises(ConfigError, match="no policy server"),
    ):
        client(look())


@pytest.mark.parametrize(
    ("status", "error", "why"),
    [(403, ConfigError, "does not let this client in"), (500, ConnectionLost, r"\(500: it has a fault")],
)
def test_a_server_that_lets_nobody_in_is_told_apart(status: int, error: type[Exception], why: str) -> None:
    def refuse(robot: ServerConnection, _: object) -> Any:
        return robot.respond(status, "no\n")

    with (
        other_server(greet, process_request=refuse) as url,
        closing(PolicyClient(url, timeout_s=0.2)) as client,
        pytest.raises(error, match=why),
    ):
        client(look())


def test_a_key_that_goes_out_in_clear_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    for quiet in ("ws://127.0.0.1:1", "ws://localhost:1", "ws://[::1]:1", "wss://10.0.0.1:1"):
        PolicyClient(quiet, api_key=KEY)
    assert not caplog.records
    PolicyClient("ws://10.0.0.1:1", api_key=KEY)
    assert "in clear" in caplog.text


class Process:
    """The command, in a process of its own."""

    def __init__(self, folder: Path, port: int) -> None:
        words = ["serve", "policy", str(folder), "--port", str(port), "--max-batch", "1", "--device", "cpu"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tailorbird", *words],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TAILORBIRD_API_KEY": KEY},
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline().strip() == f"serving {folder} on ws://127.0.0.1:{port}"

    def end(self, number: signal.Signals) -> int:
        self._process.send_signal(number)
        with self._process:
            return self._process.wait(SOON_S)


def test_a_client_survives_the_servers_death_and_never_acts_on_an_old_episode(tmp_path: Path) -> None:
    folder, port = write_folder(tmp_path / "policy"), free_port()
    server = Process(folder, port)
    address = f"ws://127.0.0.1:{port}"
    with closing(PolicyClient(address, api_key=KEY, timeout_s=SOON_S, hz=10.0)) as client:
        first = client(look(0))
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
        began = time.monotonic()
        left = client(look(0, time_s=0.3))
        np.testing.assert_array_equal(left.actions, first.actions[3:])
        assert time.monotonic() - began < SOON_S / 4  # it has something to go on with, and does not wait
        client.reset(1)
        restarted = threading.Thread(target=lambda: servers.append(Process(folder, port)))
        servers: list[Process] = []
        restarted.start()
        new = client(replace(look(0), time_s=0.4))
        restarted.join()
        assert new.time_s == 0.4
        assert len(new.actions) == 7
        assert client.stats.connections == 2
        assert servers[0].end(signal.SIGTERM) == 0
