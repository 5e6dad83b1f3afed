"""Frames that were whole once. Each is a function of its number: the same in every run."""

import struct
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np

PICTURE = np.arange(6 * 7 * 3, dtype=np.uint8).reshape(6, 7, 3)
STATE = np.array([0.5, -0.25, 1.0, 0.0], np.float32)
ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**63, 2**64 - 1, -(2**63), 0.0, -0.0, 1e308, float("nan"), float("inf")),
    *("", "\x00", "observation/state", "\U0001f916", "a" * 300, "<f4", "|O8", "<U9999999", "<M8[s]", "|V1"),
    *(b"", b"\xff", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"\x93NUMPY", b"\x80\x04."),
    *(
        [],
        [[]],
        {},
        {"": {}},
        {b"__ndarray__": True},
        {"__ndarray__": True},
        {"__image__": True, "data": b"GIF89a"},
    ),
    *([-1], [0], [2**40, 2**40], [1] * 40, [3, "x"], list(range(200))),
)


def array(values: np.ndarray, *, text: bool = False) -> dict[Any, Any]:
    parts = {
        "__ndarray__": True,
        "data": values.tobytes(),
        "dtype": values.dtype.str,
        "shape": list(values.shape),
    }
    return parts if text else {key.encode(): part for key, part in parts.items()}


def whole() -> list[Any]:
    """What the server's four kinds of peers say when they are well."""
    seen = {
        "observation/image": array(PICTURE),
        "observation/state": array(STATE),
        "prompt": "reach the cube",
    }
    tag = {"session": "", "seq": 0, "generation": 1, "reset": 3, "deadline_ms": 500.0, "time_s": 1.5}
    committed = {"actions": array(np.zeros((3, 2), np.float32)), "frozen": 2}
    payload = {
        "images": {"top": array(PICTURE, text=True)},
        "states": array(STATE, text=True),
        "task_description": "reach the cube",
    }
    said = [
        ("observation", payload),
        ("episode_start", {"task": {"name": "reach"}, "mode": "live"}),
        ("hello", {}),
    ]
    return [
        seen,
        {**seen, "tailorbird": tag},
        {**seen, "tailorbird": {**tag, "committed": committed, "image_time_s": {"image": 1.0}}},
        *({"type": kind, "payload": one, "seq": 1, "timestamp": 2.0} for kind, one in said),
    ]


WHOLE = whole()
PACKED = [msgpack.packb(one) for one in WHOLE]


def frame(number: int) -> bytes | str:
    """The mutant of a number."""
    rng = np.random.default_rng(number)
    kind = MUTATORS[number % len(MUTATORS)]
    made = kind(rng)
    return made if isinstance(made, str) else bytes(made)


def flipped(rng: np.random.Generator) -> bytes:
    data = bytearray(some(rng))
    for at in rng.integers(len(data), size=rng.integers(1, 9)):
        data[at] ^= 1 << rng.integers(8)
    return bytes(data)


def spliced(rng: np.random.Generator) -> bytes:
    one, other = some(rng), some(rng)
    return one[: rng.integers(len(one) + 1)] + other[rng.integers(len(other) + 1) :]


def noise(rng: np.random.Generator) -> bytes:
    return rng.bytes(rng.integers(300))


def declared(rng: np.random.Generator) -> bytes:
    """Heads that promise gigabytes, inside a map that began well."""
    head = rng.choice([0xC6, 0xDB, 0xDD, 0xDF, 0xC5, 0xDA, 0xDC, 0xDE, 0xC9, 0xD8])
    return (
        b"\x82\xa6prompt"
        + bytes([head])
        + struct.pack(">I", rng.integers(2**32))
        + rng.bytes(rng.integers(40))
    )


def nested(rng: np.random.Generator) -> bytes:
    depth = int(rng.integers(2, 5000))
    return bytes(rng.choice([b"\x91", b"\x81\xa1a", b"\x81\xc0"])) * depth + b"\xc0"


def crowded(rng: np.random.Generator) -> bytes:
    return msgpack.packb({"observation/image": [None] * int(rng.integers(60_000)), "prompt": "x"})


def replaced(rng: np.random.Generator) -> bytes:
    """A value, somewhere in a whole message, is another."""
    return msgpack.packb(swapped(WHOLE[rng.integers(len(WHOLE))], rng))


def swapped(value: Any, rng: np.random.Generator) -> Any:
    if not isinstance(value, dict) or not value or rng.random() < 0.2:
        return ODD[rng.integers(len(ODD))]
    key = list(value)[rng.integers(len(value))]
    rest = {name: one for name, one in value.items() if name != key}
    return rest if rng.random() < 0.1 else {**rest, key: swapped(value[key], rng)}


def arrays(rng: np.random.Generator) -> bytes:
    """Arrays of other kinds and shapes than the policy's, among them values that are no numbers."""
    kinds = ["<f4", "<f8", "|u1", "<i8", "|b1", "<f2"]
    picture, state = (
        rng.integers(0, 3, rng.integers(0, 9, rng.integers(0, 5))).astype(rng.choice(kinds)) for _ in range(2)
    )
    if rng.random() < 0.5:
        picture, state = PICTURE, np.full(4, rng.choice([np.nan, np.inf, -np.inf, 1e38]), np.float32)
    seen = {"observation/image": array(picture), "observation/state": array(state), "prompt": "reach"}
    return msgpack.packb(seen)


def text(rng: np.random.Generator) -> str:
    return "".join(map(chr, rng.integers(1, 0xD7FF, rng.integers(50))))


def some(rng: np.random.Generator) -> bytes:
    return PACKED[rng.integers(len(PACKED))]


MUTATORS: tuple[Callable[[np.random.Generator], bytes | str], ...] = (
    *(
        flipped,
        replaced,
        spliced,
        flipped,
        replaced,
        arrays,
        noise,
        declared,
        flipped,
        replaced,
        nested,
        crowded,
    ),
    text,
)
