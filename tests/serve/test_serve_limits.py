"""Who is let in, and how much of what they send is read."""

import io
import socket
import ssl
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Close, Frame, Opcode
from websockets.sync.client import ClientConnection

from served_here import SOON_S, Watched, hear, look, meet, page, plain, self_signed, serving, tagged
from tailorbird.codec import pack
from tailorbird.errors import ConfigError
from tailorbird.serve.config import ServeConfig
from tailorbird.serve.limits import KEY_VARIABLE, load_keys

Typed = Callable[..., tuple[int | str | None, str]]

KEYS = "one-of-two-long-keys", "the-other-of-two-keys"


@pytest.fixture(scope="module")
def policy() -> Watched:
    return Watched()


@pytest.fixture(scope="module")
def url(policy: Watched) -> Iterator[str]:
    with serving(policy, max_frame_mb=1, handshake_s=0.3, ping_s=0.3, max_sessions=3) as address:
        yield address


def raw(url: str) -> socket.socket:
    host, port = url.removeprefix("ws://").split(":")
    return socket.create_connection((host, int(port)), timeout=SOON_S)


def upgraded(url: str) -> socket.socket:
    """A socket behind the handshake, which then says whatever a test wants."""
    peer = raw(url)
    lines = "Host: x", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"
    key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
    peer.sendall("\r\n".join(["GET / HTTP/1.1", *lines, key, "", ""]).encode())
    assert b"101" in peer.recv(64)
    return peer


def ended(peer: socket.socket) -> bytes:
    """All that still comes until the server hangs up."""
    found = b""
    while part := peer.recv(1 << 16):
        found += part
    return found


def listen(robot: ClientConnection) -> None:
    while True:
        hear(robot)


def goodbye(robot: ClientConnection) -> Close:
    """How the server ends it, after whatever it says before."""
    with pytest.raises(ConnectionClosed) as end:
        listen(robot)
    assert end.value.rcvd is not None
    return end.value.rcvd


def well(robot: ClientConnection) -> bool:
    robot.send(plain(look()))
    return bool(hear(robot)["actions"].shape == (7, 4))


@pytest.mark.parametrize("key", [None, "wrong", f"{KEYS[0]}!", f"Basic {KEYS[0]}"])
def test_without_a_right_key_nobody_comes_in(policy: Watched, tmp_path: Path, key: str | None) -> None:
    file = tmp_path / "keys"
    file.write_text("\n".join(KEYS))
    header = {} if key is None else {"Authorization": key if " " in key else f"Api-Key {key}"}
    with (
        serving(policy, api_key_file=file) as url,
        pytest.raises(InvalidStatus, match="401"),
        meet(url, additional_headers=header),
    ):
        pass


def test_each_of_several_keys_opens_in_either_scheme(policy: Watched, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("\n".join(KEYS))
    with serving(policy, api_key_file=file) as url:
        for scheme in ("Api-Key", "Bearer"):
            for key in KEYS:
                with meet(url, additional_headers={"Authorization": f"{scheme} {key}"}) as robot:
                    hear(robot)
                    assert well(robot)
        with raw(url) as peer:
            peer.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"401" in ended(peer)
        with raw(url) as peer:
            peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Api-Key \xff\xfe\r\n\r\n")
            assert b"401" in ended(peer)


def test_an_address_that_others_reach_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    for host in ("0.0.0.0", "::", "192.168.1.5", "robot.example"):
        with pytest.raises(ConfigError, match="can be reached from elsewhere"):
            load_keys(ServeConfig(host=host))
    for host in ("127.0.0.1", "127.0.0.9", "::1", "localhost"):
        assert not load_keys(ServeConfig(host=host))
    monkeypatch.setenv(KEY_VARIABLE, KEYS[0])
    assert load_keys(ServeConfig(host="0.0.0.0")).admit(f"Bearer {KEYS[0]}")
    monkeypatch.setenv(KEY_VARIABLE, "short")
    with pytest.raises(ConfigError, match="fewer than 16"):
        load_keys(ServeConfig())
    monkeypatch.setenv(KEY_VARIABLE, "a-key-that-\xe9-is-long-enough")
    with pytest.raises(ConfigError, match="not all ASCII"):
        load_keys(ServeConfig())


def test_keys_that_others_could_overhear_are_warned_about(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEYS[0])
    load_keys(ServeConfig())
    load_keys(ServeConfig(host="0.0.0.0", cert=Path("cert.pem"), cert_key=Path("key.pem")))
    assert not caplog.records
    load_keys(ServeConfig(host="0.0.0.0"))
    assert "go to 0.0.0.0 in clear" in caplog.text


def test_the_command_refuses_before_it_loads_anything(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    end, _ = typed("serve", "policy", "no-such-policy", "--host", "0.0.0.0")
    assert "name keys with --api-key-file or TAILORBIRD_API_KEY" in str(end)
    end, _ = typed("serve", "policy", "no-such-policy", "--cert", "no.pem", "--cert-key", "no.key")
    assert "no certificate with its key in no.pem" in str(end)
    end, _ = typed("serve", "policy", "no-such-policy")
    assert "no-such-policy" in str(end)


def test_a_web_page_cannot_reach_a_robot_through_its_visitor(url: str) -> None:
    with pytest.raises(InvalidStatus, match="403"), meet(url, origin="http://somewhere.example"):
        pass


def nested(depth: int) -> bytes:
    return b"\x91" * depth + b"\xc0"


def array(**parts: object) -> bytes:
    """A state whose parts are as asked."""
    whole = {b"__ndarray__": True, b"data": bytes(20), b"dtype": "<f4", b"shape": [5]}
    return bytes(msgpack.packb({"observation/state": {**whole, **{k.encode(): v for k, v in parts.items()}}}))


@pytest.mark.parametrize(
    ("frame", "code", "message"),
    [
        (bytes((1 << 20) + 1), 1009, ""),
        (nested(1 << 10), 1007, "levels"),
        (b"\xdc\xff\xff" + b"\x80" * 0xFFFF, 1007, "values"),
        (b"\xdd\xff\xff\xff\xff", 1007, "cut off"),
        (b"\xc6\xff\xff\xff\xff", 1007, "cut off"),
        (b"\xc7\x01\x01\x01", 1007, "extension"),
        (b"", 1007, "cut off"),
        (pack([1, 2]), 1007, "a map"),
        (array(dtype="|O"), 1007, "dtype"),
        (array(dtype="<U5"), 1007, "dtype"),
        (array(dtype=[["a", "<f4"]]), 1007, "dtype"),
        (array(shape=[4]), 1007, "has 20 bytes"),
        (array(shape=[-5, -1]), 1007, "sizes"),
        (array(shape=[1 << 40, 0]), 1007, "sizes"),
        (array(shape=[1] * 9), 1007, "at most 4"),
        (array(shape=None), 1007, "shape"),
        (array(data="text"), 1007, "bytes"),
        (pack([np.zeros(1)] * 65), 1007, "arrays"),
        ("text", 1007, "msgpack"),
        (pack({"tailorbird": {"seq": -1}}), 1007, "seq"),
        (pack({"type": "hello", "payload": 3, "seq": 0}), 1007, "vla-eval"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_is_too_much_or_nonsense_ends_with_a_code_and_why(
    url: str, frame: bytes | str, code: int, message: str
) -> None:
    with meet(url) as other, meet(url) as robot:
        hear(other), hear(robot)
        robot.send(frame)
        end = goodbye(robot)
        assert (end.code, message in end.reason) == (code, True), end
        assert well(other)


def test_a_gigabyte_that_is_only_announced_is_refused_at_once(url: str) -> None:
    with upgraded(url) as peer:
        peer.sendall(b"\x82\xff" + struct.pack(">Q", 1 << 30) + bytes(4))
        assert struct.pack(">H", 1009) in ended(peer)


@pytest.mark.parametrize(("side", "message"), [(5000, "5000 x 5000 px"), (1 << 15, "more than the")])
def test_a_picture_that_is_too_large_is_refused_by_its_header(url: str, side: int, message: str) -> None:
    png = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + struct.pack(">II", side, side) + b"\x08\x02\0\0\0"
    png += struct.pack(">I", zlib.crc32(png[12:])) + b"\0\0\0\1IDAT"
    seen = msgpack.unpackb(plain(look()))
    seen["observation/top"] = {"__image__": True, "format": "png", "data": png, "shape": [1, 1, 3]}
    with meet(url) as robot:
        hear(robot)
        robot.send(msgpack.packb(seen))
        assert message in hear(robot)
        assert well(robot)


def test_pictures_that_are_small_as_files_are_not_large_together(policy: Watched, url: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (1200, 1000)).save(file, "PNG")
    seen = msgpack.unpackb(plain(look()))
    for name in ("top", "image"):
        seen[f"observation/{name}"] = {"__image__": True, "format": "png", "data": file.getvalue()}
    with meet(url) as robot:
        hear(robot)
        robot.send(msgpack.packb(seen))
        assert "1200 x 1000 px: an observation has room for 897152 more" in hear(robot)


def test_pings_whose_answers_nobody_reads_end_the_connection(policy: Watched) -> None:
    flood = b"".join(Frame(Opcode.PING, b"x" * 125).serialize(mask=True) for _ in range(500))
    with serving(policy, ping_s=60) as url:  # silence would end it, too
        with upgraded(url) as peer, pytest.raises(OSError, match=r"reset|Broken pipe"):  # noqa: PT012
            for _ in range(2000):
                peer.sendall(flood)
        assert 'tailorbird_refusals_total{reason="unread"} 1.0' in page(url, "/metrics")


def test_those_who_only_connect_make_room_for_who_has_something_to_say(policy: Watched) -> None:
    with serving(policy, max_sessions=1) as url:
        silent = [raw(url) for _ in range(18)]
        with meet(url) as robot:
            hear(robot)
            assert well(robot)
            assert ended(silent[0]) == b""
        for one in silent:
            one.close()


def test_who_never_says_what_it_wants_is_hung_up_on(url: str) -> None:
    with raw(url) as slow:
        began = time.monotonic()
        slow.sendall(b"GET / HTTP/1.1\r\nHo")
        assert ended(slow) == b""
        assert 0.2 < time.monotonic() - began < SOON_S / 2


@pytest.mark.parametrize("part", [b"", b"\x82\xfe\x40\x00abcd" + bytes(100)], ids=["silent", "mid-frame"])
def test_a_peer_that_does_not_answer_is_let_go(url: str, part: bytes) -> None:
    with upgraded(url) as half_open:
        half_open.sendall(part)
        assert b"\x88" in ended(half_open)


def test_beyond_the_places_there_are_one_is_told_to_try_later(url: str) -> None:
    with meet(url) as one, meet(url) as two, meet(url) as three:
        for robot in (one, two, three):
            hear(robot)
        with meet(url) as fourth, pytest.raises(ConnectionClosed, match=r"1013.*try again later"):
            hear(fourth)
        assert well(one)


def test_who_asks_too_often_is_sent_away(policy: Watched) -> None:
    with serving(policy, max_rate_hz=5.0) as url, meet(url) as robot:
        hear(robot)
        for seq in range(1, 9):
            robot.send(tagged(look(), seq=seq))
        end = goodbye(robot)
        assert (end.code, end.reason) == (1008, "more than 5 messages a second")


def test_over_tls_the_certificate_counts(policy: Watched, tmp_path: Path) -> None:
    cert, key = self_signed(tmp_path)
    with serving(policy, cert=cert, cert_key=key) as url:
        assert url.startswith("wss://")
        with meet(url, ssl=ssl.create_default_context(cafile=cert)) as robot:
            hear(robot)
            assert well(robot)
        with pytest.raises(ssl.SSLCertVerificationError), meet(url, ssl=ssl.create_default_context()):
            pass
