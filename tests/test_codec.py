"""Bytes between a robot and a server, and back."""

from typing import Any

import msgpack
import numpy as np
import pytest

from tailorbird.codec import (
    TAG,
    Caps,
    Compressed,
    Tag,
    decode_answer,
    decode_observation,
    decode_tag,
    encode_chunk,
    encode_observation,
    encode_refusal,
    pack,
    unpack,
)
from tailorbird.errors import DataError
from tailorbird.wire import ActionChunk, Committed, Observation


def seen() -> Observation:
    return Observation(
        images={
            "top": np.arange(18, dtype=np.uint8).reshape(2, 3, 3)[:, ::-1],
            "hand": np.ones((4, 5, 3), np.uint8),
        },
        state=np.array([1, 2.5], np.float32),
        task="pick it up",
        time_s=-3.25,
        image_time_s={"hand": -4.0},
        committed=Committed(actions=np.ones((3, 2), np.float32), frozen=2),
    )


def test_an_observation_comes_back_as_it_was_sent() -> None:
    tag = Tag(session="ab", seq=7, generation=2, reset=5, deadline_ms=80.0)
    message = unpack(encode_observation(seen(), tag), Caps())
    assert decode_tag(message) == tag
    there, back = seen(), decode_observation(message)
    for name, image in there.images.items():
        np.testing.assert_array_equal(back.images[name], image)
    np.testing.assert_array_equal(back.state, there.state)
    assert back.committed is not None
    np.testing.assert_array_equal(back.committed.actions, np.ones((3, 2)))
    assert back.committed.frozen == 2
    assert (back.task, back.time_s, dict(back.image_time_s)) == (there.task, -3.25, {"hand": -4.0})


def test_a_chunk_and_a_refusal_come_back_as_they_were_sent() -> None:
    tag = Tag(seq=3, generation=1)
    chunk = ActionChunk(
        actions=np.ones((2, 3), np.float32), time_s=1.5, scene_time_s=1.0, infer_ms={"encode": 2.0}
    )
    answered = decode_answer(unpack(encode_chunk(chunk, tag, {"infer_ms": 4.0}), Caps()))
    assert answered.chunk is not None
    np.testing.assert_array_equal(answered.chunk.actions, chunk.actions)
    assert (answered.tag, answered.server_ms) == (tag, {"infer_ms": 4.0})
    assert (answered.chunk.time_s, answered.chunk.scene_time_s) == (1.5, 1.0)
    refusal = encode_refusal("late", "too late", tag)
    assert isinstance(refusal, bytes)
    answered = decode_answer(unpack(refusal, Caps()))
    assert (answered.chunk, answered.code, answered.message) == (None, "late", "too late")
    assert encode_refusal("late", "too late", None) == "late: too late"


@pytest.mark.parametrize("text_keys", [False, True])
@pytest.mark.parametrize("dtype", ["bool", "u1", "i1", "<u2", "<i4", "<i8", "<f2", "<f4", "<f8"])
def test_arrays_of_numbers_come_back_in_either_layout(dtype: str, text_keys: bool) -> None:
    array = np.arange(6).reshape(3, 2).astype(dtype)
    (back,) = unpack(pack([array.T], text_keys=text_keys), Caps())
    np.testing.assert_array_equal(back, array.T)
    assert back.dtype == array.dtype
    assert not back.flags.writeable


@pytest.mark.parametrize("array", [np.array([None]), np.array(["a"]), np.array([1j]), np.array([1], ">f4")])
def test_what_a_peer_would_refuse_is_not_sent(array: Any) -> None:
    with pytest.raises(DataError, match="cannot be sent"):
        pack(array)


def test_a_scalar_as_openpis_client_packs_it_is_a_number() -> None:
    scalar = {b"__npgeneric__": True, b"data": 1.5, b"dtype": "<f4"}
    assert unpack(msgpack.packb({"gripper": scalar}), Caps()) == {"gripper": 1.5}
    assert unpack(pack({"gripper": np.float32(1.5)}), Caps()) == {"gripper": 1.5}
    for bad in (
        {**scalar, b"data": 1 << 40, b"dtype": "<i4"},
        {**scalar, b"data": "x"},
        {**scalar, b"dtype": "O"},
    ):
        with pytest.raises(DataError):
            unpack(msgpack.packb(bad), Caps())


def test_every_cut_and_every_changed_head_of_a_message_is_refused_or_read_but_never_more() -> None:
    whole = encode_observation(seen(), Tag())
    for length in range(len(whole)):
        with pytest.raises(DataError):
            unpack(whole[:length], Caps())
    with pytest.raises(DataError, match="behind its end"):
        unpack(whole + b"\xc0", Caps())
    for head in range(256):
        for place in (0, 1, 40):
            changed = whole[:place] + bytes([head]) + whole[place + 1 :]
            try:
                unpack(changed, Caps())
            except DataError:
                continue


def test_the_walk_over_the_heads_agrees_with_msgpack() -> None:
    sizes = (0, 1, 15, 16, 31, 32, 255, 256, 65_535, 65_536)
    caps = Caps(num_values=1 << 18)
    for value in [*("x" * n for n in sizes), *(bytes(n) for n in sizes), *([0] * n for n in sizes)]:
        assert unpack(msgpack.packb(value), caps) == value
    for n in (0, 1, 15, 16, 65_535, 65_536):
        many = {str(key): key for key in range(n)}
        assert unpack(msgpack.packb(many), caps) == many
    numbers = [
        None,
        False,
        True,
        1.5,
        *(sign * (1 << bits) for sign in (1, -1) for bits in (3, 7, 8, 15, 31, 40)),
    ]
    assert unpack(msgpack.packb(numbers), caps) == numbers
    assert unpack(msgpack.packb(1.5, use_single_float=True), caps) == 1.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, "instruction"),
        ({"observation/state": "x"}, "state"),
        ({"observation/state": [[1], [1, 2]]}, "state"),
        ({TAG: {"time_s": float("nan")}}, "finite number of seconds"),
        ({TAG: {"image_time_s": [1]}}, "image_time_s"),
        ({TAG: {"committed": {"actions": [[1.0]], "frozen": 1}}}, "committed"),
        ({TAG: {"committed": {"actions": np.ones((2, 3), np.float32), "frozen": 3}}}, "frozen"),
    ],
)
def test_an_observation_of_another_kind_is_refused(change: dict[str, Any], message: str) -> None:
    good = {"observation/state": [1.0], "prompt": "go"}
    decode_observation(good)
    with pytest.raises(DataError, match=message):
        decode_observation({**good, **change})
    for missing in good:
        with pytest.raises(DataError, match=r"needs observation/state and prompt: the message has \['"):
            decode_observation({key: value for key, value in good.items() if key != missing})


def test_what_is_beyond_float32_is_infinite_for_the_policy_to_refuse() -> None:
    state = decode_observation({"observation/state": [1e300], "prompt": "go"}).state
    assert np.isinf(state).all()


def test_a_damaged_picture_is_refused_without_the_decoders_words() -> None:
    for data in (b"", b"GIF89a" + bytes(20), b"\x89PNG\r\n\x1a\n" + bytes(40)):
        with pytest.raises(DataError, match=r"^a picture is no PNG or JPEG that can be read: send it again$"):
            Compressed(data).open(100)


@pytest.mark.parametrize(
    "answer", [[], {"actions": np.ones((2, 2))}, {TAG: {}, "actions": np.array([[np.nan]])}, {TAG: {}}]
)
def test_a_client_refuses_what_is_no_answer(answer: Any) -> None:
    with pytest.raises(DataError, match="the server"):
        decode_answer(answer)
