"""Bytes between a robot and a policy server: msgpack with arrays in it, and nothing that could run code.

The layouts are those of openpi's client, whose arrays have byte strings as keys, and of vla-eval, whose have
text. What a peer sends is measured before anything of it is made: no length, depth or count is believed.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from tailorbird.errors import DataError
from tailorbird.wire import ActionChunk, Committed, Observation

TAG = "tailorbird"  # the key that our own client adds to an openpi message
INTEGERS = {f"<{kind}{size}" for kind in "iu" for size in (2, 4, 8)}
DTYPES = {"|b1", "|u1", "|i1", *INTEGERS, "<f2", "<f4", "<f8"}
MAX_DIMS = 4
MAX_TASK = 4096  # characters of an instruction: a policy reads far less, and more costs its tokenizer seconds
MAX_COUNT = 2.0**53  # up to which numbers count exactly in every language
# msgpack's first byte: bytes of a number; of the length of bytes and text; of a count, and values for each.
PLAIN = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
PLAIN |= {0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
SIZED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
NESTED = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}


@dataclass(frozen=True, kw_only=True)
class Caps:
    """What one message may hold: bytes, values, how deep they lie, arrays, and pixels of all its pictures."""

    num_bytes: int = 8 << 20
    num_values: int = 1 << 10  # each costs the loop that all robots share half a microsecond
    depth: int = 8
    num_arrays: int = 64
    num_pixels: int = 1 << 21


@dataclass(frozen=True)
class Compressed:
    """A picture as a file, PNG or JPEG, that nobody has looked into yet."""

    data: bytes

    def open(self, num_pixels: int) -> NDArray[np.uint8]:
        """(H, W, 3). The size is read, and refused, before a pixel is decoded.

        Raises:
            DataError: it is too large, damaged, or something else.
        """
        import io

        from PIL import Image

        try:
            with Image.open(io.BytesIO(self.data), formats=("PNG", "JPEG")) as picture:
                width, height = picture.size
                if width * height > num_pixels:
                    raise DataError(
                        f"a picture has {width} x {height} px: an observation has room for {num_pixels} more"
                    )
                return np.array(picture.convert("RGB"))
        except DataError:
            raise
        except Image.DecompressionBombError:
            raise DataError(f"a picture has more than the {num_pixels} px that there is room for") from None
        except Exception:  # decoders of damaged files raise whatever they like, and may name memory addresses
            raise DataError("a picture is no PNG or JPEG that can be read: send it again") from None


def pack(value: Any, *, text_keys: bool = False) -> bytes:
    """Maps, lists, numbers, text and arrays to bytes; `text_keys` is vla-eval's layout, else openpi's."""

    def plain(one: Any) -> Any:
        if isinstance(one, np.generic):
            return one.item()
        if not isinstance(one, np.ndarray) or one.dtype.str not in DTYPES:
            raise DataError(f"a {getattr(one, 'dtype', type(one).__name__)} cannot be sent")
        parts = {"__ndarray__": True, "data": one.tobytes(), "dtype": one.dtype.str, "shape": list(one.shape)}
        return parts if text_keys else {name.encode(): part for name, part in parts.items()}

    packed: bytes = msgpack.packb(value, default=plain)
    return packed


def unpack(data: bytes, caps: Caps) -> Any:
    """What `pack` was given, with read-only arrays; pictures in a file format stay `Compressed`.

    Raises:
        DataError: it is not what `pack` makes, or more than the caps allow.
    """
    if len(data) > caps.num_bytes:
        raise DataError(f"a message has {len(data)} bytes: at most {caps.num_bytes} are read")
    _measure(data, caps)
    num_arrays = 0

    def build(found: dict[Any, Any]) -> Any:
        nonlocal num_arrays
        parts = {
            key.decode("ascii", "replace") if isinstance(key, bytes) else key: found[key] for key in found
        }
        if not parts.keys() & {"__ndarray__", "__npgeneric__", "__image__"}:
            return found
        num_arrays += 1
        if num_arrays > caps.num_arrays:
            raise DataError(f"a message has more than {caps.num_arrays} arrays")
        if "__image__" in parts and parts.get("format") != "raw":
            return Compressed(_bytes_of(parts))
        if "__npgeneric__" in parts:
            return _dtype_of(parts).type(parts.get("data")).item()
        return _array_of(parts, caps)

    try:
        return msgpack.unpackb(data, object_hook=build)
    except DataError:
        raise
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException):
        raise DataError("a message is damaged: it is no msgpack of maps, text, numbers and arrays") from None


def _measure(data: bytes, caps: Caps) -> None:
    """Walk over the heads of all values and make none: a byte of msgpack can become a hundred of memory."""
    at, num_values, lacking = 0, 0, [1]  # how many values each open level still lacks
    while lacking:
        if not lacking[-1]:
            lacking.pop()
            continue
        lacking[-1] -= 1
        num_values += 1
        if num_values > caps.num_values or len(lacking) > caps.depth:
            raise DataError(
                f"a message has more than {caps.num_values} values, or {caps.depth} levels of them"
            )
        if at >= len(data):
            raise DataError("a message is cut off")
        at, inside = _after(data, at)
        if inside:
            lacking.append(inside)
    if at != len(data):
        raise DataError("a message is cut off, or has something behind its end")


def _after(data: bytes, at: int) -> tuple[int, int]:
    """Where the value at a position ends, and how many values lie inside it: those begin there."""
    head, at = data[at], at + 1
    if head < 0x80 or head >= 0xE0:
        return at, 0
    if head < 0xA0:
        return at, (head & 15) * (2 if head < 0x90 else 1)
    if head < 0xC0:
        return at + (head & 31), 0
    if head in PLAIN:
        return at + PLAIN[head], 0
    if head in SIZED:
        size = SIZED[head]
        return at + size + int.from_bytes(data[at : at + size]), 0
    if head in NESTED:
        size, times = NESTED[head]
        return at + size, int.from_bytes(data[at : at + size]) * times
    raise DataError("a message has extension types: only maps, lists, text, bytes and numbers are read")


def _bytes_of(parts: Mapping[str, Any]) -> bytes:
    data = parts.get("data")
    if not isinstance(data, bytes):
        raise DataError("an array has no bytes in `data`")
    return data


def _dtype_of(parts: Mapping[str, Any]) -> np.dtype[Any]:
    name = parts.get("dtype")
    if not isinstance(name, str) or name not in DTYPES:
        raise DataError(f"an array's dtype is none of {', '.join(sorted(DTYPES))}")
    return np.dtype(name)


def _array_of(parts: Mapping[str, Any], caps: Caps) -> NDArray[Any]:
    dtype, data, shape = _dtype_of(parts), _bytes_of(parts), parts.get("shape")
    if not isinstance(shape, list) or len(shape) > MAX_DIMS:
        raise DataError(f"an array's shape is no list of at most {MAX_DIMS} sizes")
    if not all(type(size) is int and 0 <= size <= caps.num_bytes for size in shape):
        raise DataError("an array's shape has something else than sizes")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise DataError(f"an array of {shape} {dtype} has {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(shape)


@dataclass(frozen=True, kw_only=True)
class Tag:
    """What goes along with an observation, and comes back with its chunk.

    session: what the server called this connection; a recording that is played to another has the wrong one.
    seq: rises with each observation.
    generation: number of the episode; answers for an older one are not delivered.
    reset: seed of the noise that a new generation begins with.
    deadline_ms: how long after its arrival an answer is of use; 0 is as long as the server allows.
    """

    session: str = ""
    seq: int = 0
    generation: int = 0
    reset: int = 0
    deadline_ms: float = 0.0


def number(value: Any, what: str, *, most: float = MAX_COUNT) -> float:
    """A finite number from 0 to `most`. Raises DataError."""
    if type(value) not in (int, float) or not 0 <= value <= most:
        raise DataError(f"{what} is no number from 0 to {most:g}")
    return float(value)


def encode_observation(seen: Observation, tag: Tag) -> bytes:
    """An openpi request that openpi's own servers can read too."""
    more: dict[str, Any] = {**asdict(tag), "time_s": seen.time_s, "image_time_s": dict(seen.image_time_s)}
    if seen.committed is not None:
        more["committed"] = {"actions": seen.committed.actions, "frozen": seen.committed.frozen}
    pictures = {f"observation/images/{name}": np.asarray(image) for name, image in seen.images.items()}
    state = np.asarray(seen.state, np.float32)
    return pack({**pictures, "observation/state": state, "prompt": seen.task, TAG: more})


def decode_tag(message: Mapping[Any, Any]) -> Tag | None:
    """Our client's own part of an openpi request; other clients have none. Raises DataError."""
    if (found := message.get(TAG)) is None:
        return None
    if not isinstance(found, dict):
        raise DataError(f"`{TAG}` is no map")
    given = {one.name: found[one.name] for one in fields(Tag) if one.name in found}
    session = given.pop("session", "")
    deadline_ms = number(given.pop("deadline_ms", 0.0), "deadline_ms")
    if not isinstance(session, str):
        raise DataError("session is no text")
    counts = {name: int(number(value, name)) for name, value in given.items()}
    return Tag(session=session, deadline_ms=deadline_ms, **counts)


def decode_observation(message: Mapping[Any, Any]) -> Observation:
    """The way back from `encode_observation`, and from what other clients of openpi send.

    Cameras are `observation/<camera>` or `observation/images/<camera>`; what else there is, is not read.

    Raises:
        DataError: the state or the instruction is missing, or something is of another kind.
    """
    images: dict[str, Any] = {}
    for key, value in message.items():
        if isinstance(key, str) and key.startswith("observation/") and key != "observation/state":
            name = key.removeprefix("observation/").removeprefix("images/")
            if isinstance(value, Compressed) or (isinstance(value, np.ndarray) and value.ndim >= 2):
                images[name] = value
    if "observation/state" not in message or "prompt" not in message:
        there = sorted(map(str, message))
        raise DataError(f"an observation needs observation/state and prompt: the message has {there}")
    state, task, more = message["observation/state"], message["prompt"], message.get(TAG) or {}
    return as_observation(images, state, task, more)


def as_observation(images: Mapping[str, Any], state: Any, task: Any, more: Mapping[str, Any]) -> Observation:
    """An observation from what a peer sent. Its pictures may be `Compressed`, and no policy was asked.

    Raises:
        DataError: something is of another kind.
    """
    if not isinstance(task, str) or not all(isinstance(name, str) for name in images):
        raise DataError("the instruction and the names of cameras are text")
    if len(task) > MAX_TASK:
        raise DataError(f"the instruction has {len(task)} characters: at most {MAX_TASK} are read")
    try:
        with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite, and is refused as such
            values = np.asarray(state if isinstance(state, np.ndarray) else list(state), np.float32)
    except (TypeError, ValueError):
        raise DataError("the state is no list of numbers") from None
    times, committed = more.get("image_time_s", {}), more.get("committed")
    if not isinstance(times, dict):
        raise DataError("image_time_s is no map of seconds")
    return Observation(
        images=images,
        state=values,
        task=task,
        time_s=_time(more.get("time_s", 0.0)),
        image_time_s={str(name): _time(value) for name, value in times.items()},
        committed=None if committed is None else _committed(committed),
    )


def _time(value: Any) -> float:
    """Clocks may begin anywhere, so it may be negative."""
    if type(value) not in (int, float) or not math.isfinite(value):
        raise DataError("a time is no finite number of seconds")
    return float(value)


def _committed(found: Any) -> Committed:
    actions = found.get("actions") if isinstance(found, dict) else None
    if not isinstance(actions, np.ndarray) or actions.ndim != 2 or actions.dtype != np.float32:
        raise DataError("committed needs actions, (n, A) float32, and how many of them are frozen")
    return Committed(actions=actions, frozen=int(number(found.get("frozen"), "frozen", most=len(actions))))


def encode_chunk(chunk: ActionChunk, tag: Tag | None, server_ms: Mapping[str, float]) -> bytes:
    """openpi's answer; what goes beyond it is for who sent a tag."""
    answer: dict[str, Any] = {"actions": chunk.actions, "server_timing": dict(server_ms)}
    if tag is not None:
        times = {"time_s": chunk.time_s, "scene_time_s": chunk.scene_time_s}
        answer[TAG] = {**asdict(tag), **times, "infer_ms": dict(chunk.infer_ms)}
    return pack(answer)


def encode_refusal(code: str, message: str, tag: Tag | None) -> bytes | str:
    """Openpi's own clients take any text for an error, and show it."""
    if tag is None:
        return f"{code}: {message}"
    return pack({"error": {"code": code, "message": message}, TAG: asdict(tag)})


@dataclass(frozen=True)
class Answered:
    """What came back: the tag of what was asked, and a chunk, or else why there is none."""

    tag: Tag
    chunk: ActionChunk | None = None
    server_ms: Mapping[str, float] = field(default_factory=dict)
    code: str = ""
    message: str = ""


def decode_answer(message: Any) -> Answered:
    """The way back from `encode_chunk` and `encode_refusal`, both with a tag.

    Raises:
        DataError: it is neither.
    """
    tag = decode_tag(message) if isinstance(message, dict) else None
    if tag is None:
        raise DataError("the server does not answer as one of ours: use its own client")
    more = message[TAG]
    if isinstance(error := message.get("error"), dict):
        return Answered(tag, code=str(error.get("code")), message=str(error.get("message")))
    actions, scene = message.get("actions"), more.get("scene_time_s")
    if not isinstance(actions, np.ndarray) or actions.ndim != 2 or not np.isfinite(actions).all():
        raise DataError("the server's actions are no finite (L, A)")
    chunk = ActionChunk(
        actions=actions.astype(np.float32),
        time_s=_time(more.get("time_s", 0.0)),
        scene_time_s=None if scene is None else _time(scene),
        infer_ms=_times(more.get("infer_ms")),
    )
    return Answered(tag, chunk, _times(message.get("server_timing")))


def _times(found: Any) -> dict[str, float]:
    if not isinstance(found, dict):
        raise DataError("the server's timing is no map of milliseconds")
    return {str(name): number(value, "milliseconds") for name, value in found.items()}
