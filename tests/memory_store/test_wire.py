"""Messages to frames and back: every message type, protobuf's own framing, and bytes that are not messages."""

from __future__ import annotations

import random
import re
import tracemalloc
from contextlib import suppress
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_store import errors
from memory_store import messages as m
from memory_store.errors import CutError, FencedError, PkmError, StoreError
from memory_store.wire import (
    CHUNK_BYTES,
    Terms,
    encode_header,
    failure,
    frames,
    payload_bytes,
    raised,
    read_frames,
)
from protos import store_pb2 as pb

CLASSES = get_args(m.Request) + get_args(m.Reply)
SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(0, 2**31 - 1),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    str: st.text(max_size=20),
}


def element_of(hint: Any) -> Any:
    """The element type of an annotated array field."""
    return get_args(get_args(get_args(hint)[0])[1])[0]


def array_of(hint: Any) -> st.SearchStrategy[np.ndarray]:
    """Arrays as an annotated field of a message describes them; `Any` is either compute type."""
    element = element_of(hint)
    dtype = (
        st.sampled_from([np.dtype("f4"), np.dtype("f8")]) if element is Any else st.just(np.dtype(element))
    )
    dimensions = hint.__metadata__[0].count(",") + 1
    shape = st.tuples(*[st.integers(0, 40)] * dimensions)
    return st.tuples(dtype, shape, st.randoms(use_true_random=False)).map(
        lambda drawn: np.frombuffer(
            drawn[2].randbytes(drawn[0].itemsize * int(np.prod(drawn[1]))), dtype=drawn[0]
        ).reshape(drawn[1])
    )


def value_of(hint: Any) -> st.SearchStrategy[Any]:
    if hasattr(hint, "__metadata__"):
        return array_of(hint)
    return message_of(hint) if hint is m.Sender else SCALARS[hint]


def message_of(cls: type) -> st.SearchStrategy[Any]:
    hints = get_type_hints(cls, include_extras=True)
    return st.builds(cls, **{name: value_of(hint) for name, hint in hints.items()})


any_message = st.sampled_from(CLASSES).flatmap(message_of)


def same(one: Any, other: Any) -> bool:
    """Whether two messages are equal in type and in every bit of their arrays."""
    if type(one) is not type(other):
        return False
    for field in fields(one):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, np.ndarray):
            mine, theirs = ((array.dtype, array.shape, array.tobytes()) for array in (mine, theirs))
        if mine != theirs:
            return False
    return True


# ---- what is written is read -------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES, ids=[cls.__name__ for cls in CLASSES])
@given(data=st.data(), timeout_ms=st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_every_message_comes_back_as_it_was(cls: type, data: st.DataObject, timeout_ms: int):
    message = data.draw(message_of(cls))
    back, terms = read_frames(frames(message, Terms(timeout_ms)))
    assert same(message, back)
    assert terms == Terms(timeout_ms, "float32")


def test_every_message_of_the_protocol_is_a_message_here():
    def snake(name: str) -> str:
        return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()

    bodies = {field.name: field.message_type for field in pb.Header.DESCRIPTOR.oneofs_by_name["body"].fields}
    assert {snake(cls.__name__) for cls in CLASSES} == bodies.keys()
    for cls in CLASSES:
        hints = get_type_hints(cls, include_extras=True)
        scalars = {name for name, hint in hints.items() if not hasattr(hint, "__metadata__")}
        assert scalars == {field.name for field in bodies[snake(cls.__name__)].fields}


@pytest.mark.parametrize("extra", [-1, 0, 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 17])
def test_large_arrays_travel_in_chunks(extra: int):
    numbers = np.random.default_rng(0).random((CHUNK_BYTES + extra) // 4 + 1, dtype=np.float32)
    message = m.RowGradient(
        m.Sender("session", 1, 0), 1, 2, "memory", np.arange(7, dtype=np.uint32), numbers[:, None]
    )
    sent = list(frames(message))
    assert max(map(len, sent[1:]), default=0) <= CHUNK_BYTES + 16
    assert len(sent[0]) <= CHUNK_BYTES + 1024  # the header's frame
    back, _ = read_frames(sent)
    assert same(message, back)


def test_arrays_that_are_not_contiguous_are_sent_as_they_look():
    wide = np.arange(60, dtype=np.float32).reshape(6, 10)
    back, _ = read_frames(frames(m.Rows(wide[::2, 1::3])))
    assert isinstance(back, m.Rows)
    np.testing.assert_array_equal(back.values, wide[::2, 1::3])


# ---- the format is protobuf's ------------------------------------------------------------------------------


@given(any_message)
def test_frames_written_by_hand_are_those_of_protobuf(message: Any):
    payload = b""
    for number, frame in enumerate(frames(message, Terms(17))):
        parsed = pb.Frame.FromString(frame)
        assert parsed.HasField("header") == (number == 0)
        assert number > 0 or parsed.header.timeout_ms == 17
        assert parsed.SerializeToString() == frame
        payload += parsed.chunk
    # The layout that store.proto promises: arrays in their order, each at a multiple of 64 bytes.
    position = 0
    announced, arrays = encode_header(message)
    for array, value in zip(announced.arrays, arrays, strict=True):
        position = -(-position // 64) * 64
        assert tuple(array.shape) == value.shape
        assert payload[position : position + value.nbytes] == value.tobytes()
        position += value.nbytes
    assert len(payload) == position


@given(any_message, st.lists(st.integers(1, 50), min_size=1))
def test_any_other_cutting_into_chunks_is_read_as_well(message: Any, sizes: list[int]):
    parsed = [pb.Frame.FromString(frame) for frame in frames(message)]
    payload = b"".join(frame.chunk for frame in parsed)
    cut = [pb.Frame(header=parsed[0].header, chunk=payload[: sizes[0] - 1]).SerializeToString()]
    payload = payload[sizes[0] - 1 :]
    while payload:
        size = sizes[len(cut) % len(sizes)]
        cut.append(pb.Frame(chunk=payload[:size]).SerializeToString())
        payload = payload[size:]
    assert same(message, read_frames(cut)[0])


# ---- bytes that are not messages ---------------------------------------------------------------------------


def read_or_refuse(stream: list[bytes]) -> bool:
    """Whether a message came of it. Nothing but StoreError may be raised, and its arrays are as annotated."""
    try:
        message, _ = read_frames(stream, limit=1 << 20)
    except StoreError:
        return False
    for name, hint in get_type_hints(type(message), include_extras=True).items():
        if hasattr(hint, "__metadata__"):
            array = getattr(message, name)
            assert array.ndim == hint.__metadata__[0].count(",") + 1
            assert array.dtype in (np.float32, np.float64) or array.dtype == element_of(hint)
    return True


def damaged(stream: list[bytes], chance: random.Random) -> list[bytes]:
    """The frames with a byte changed, lost or added, or a frame lost, doubled or moved."""
    number = chance.randrange(len(stream))
    frame = bytearray(stream[number])
    place = chance.randrange(len(frame) + 1)
    match chance.randrange(6):
        case 0:
            frame[place : place + 1] = bytes([chance.randrange(256)])
        case 1:
            del frame[place:]
        case 2:
            frame.insert(place, chance.randrange(256))
        case 3:
            return [*stream, bytes(frame)]
        case 4:
            return chance.sample(stream, len(stream))
        case _:
            return stream[:number] + stream[number + 1 :]
    return [*stream[:number], bytes(frame), *stream[number + 1 :]]


@settings(max_examples=200)
@given(any_message, st.integers(0, 2**32))
def test_damaged_frames_are_refused_without_another_error(message: Any, seed: int):
    chance = random.Random(seed)
    for _ in range(25):
        stream = list(frames(message))
        for _ in range(chance.randrange(1, 4)):
            stream = damaged(stream, chance) or [b""]
        read_or_refuse(stream)


def test_noise_is_refused():
    chance = random.Random(0)
    for _ in range(3000):
        read_or_refuse([chance.randbytes(chance.randrange(60)) for _ in range(chance.randrange(4))])


def test_headers_that_announce_nonsense_are_refused():
    """Names, types and shapes at random, with as many bytes behind them as they announce."""
    chance = random.Random(0)
    kinds = [field.name for field in pb.Header.DESCRIPTOR.oneofs_by_name["body"].fields]
    lengths = [0, 1, 2, 3, 5, 2**31, 2**40, 2**63, 2**64 - 1]
    accepted = 0
    for _ in range(5000):
        header = pb.Header()
        getattr(header, chance.choice([*kinds, "rows", "weight_gradient"])).SetInParent()
        for _ in range(chance.choice([0, 1, 1, 3])):
            name = chance.choice(["values", "gradient", "addresses", "weights", "offsets", ""])
            shape = chance.choices(
                lengths, weights=[4, 4, 4, 4, 4, 1, 1, 1, 1], k=chance.choice([0, 1, 1, 2, 2, 6])
            )
            header.arrays.add(name=name, type=chance.randrange(8), shape=shape)  # type: ignore[arg-type]
        stream = [pb.Frame(header=header).SerializeToString()]
        with suppress(StoreError):
            if size := payload_bytes(header, 1 << 16):
                stream.append(pb.Frame(chunk=bytes(size)).SerializeToString())
        accepted += read_or_refuse(stream)
    assert accepted > 50  # some make sense by chance


def announcing(*shape: int, element: int = pb.FLOAT32) -> bytes:
    header = pb.Header()
    header.rows.SetInParent()
    header.arrays.add(name="values", type=element, shape=shape)  # type: ignore[arg-type]
    return pb.Frame(header=header).SerializeToString()


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        ([], "before its first frame"),
        ([b""], "without a known body"),
        ([b"\xff\xff"], "can't be read"),
        ([pb.Frame(chunk=b"abc").SerializeToString()], "More than the 0 bytes"),
        ([announcing(2**20, 2**20)], "may have"),
        ([announcing(2**64 - 1, 0)], "may have"),
        ([announcing(1, 1, element=9)], "can't be read"),
        ([announcing(1, 1, 1, 1, 1)], "5 dimensions can't be read"),
        ([announcing(4)], "1 dimensions"),
        ([announcing(2, 2, element=pb.INT64), pb.Frame(chunk=bytes(32)).SerializeToString()], "no array"),
        ([announcing(2, 2)], "ended after 0 of the 16 bytes"),
        ([announcing(2, 2), pb.Frame(chunk=bytes(15)).SerializeToString()], "after 15 of the 16"),
        ([announcing(2, 2), pb.Frame(chunk=bytes(17)).SerializeToString()], "More than the 16 bytes"),
        ([announcing(2, 2), announcing(2, 2)], "malformed"),
        ([announcing(2, 2), b"\x12\x7fabc"], "malformed"),
        ([announcing(2, 2), b"\x12\xff\xff\xff\xff\xff\xff"], "malformed"),
    ],
)
def test_what_is_wrong_is_said(stream: list[bytes], said: str):
    if said == "1 dimensions":
        stream = [*stream, pb.Frame(chunk=bytes(16)).SerializeToString()]
    with pytest.raises(StoreError, match=said):
        read_frames(stream, limit=1 << 20)


def test_an_announcement_takes_no_memory_before_it_was_checked():
    tracemalloc.start()
    try:
        for shape in ((2**30, 2**30), (2**62, 4), (2**21,)):
            with pytest.raises(StoreError):
                read_frames([announcing(*shape)], limit=1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_payload_that_does_not_fit_into_memory_is_refused(monkeypatch: pytest.MonkeyPatch):
    def no_memory(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "empty", no_memory)
    with pytest.raises(StoreError, match="No memory is left"):
        read_frames([announcing(2, 2)])


# ---- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [StoreError("one"), FencedError("two"), CutError("three"), PkmError("four")]
)
def test_errors_keep_their_class_and_words(error: PkmError):
    back = raised(failure(error))
    assert (type(back), str(back)) == (type(error), str(error))


@pytest.mark.parametrize("kind", ["", "annotations", "__name__", "SystemExit", "KeyError"])
def test_a_failure_of_an_unknown_kind_is_a_store_error(kind: str):
    assert not isinstance(getattr(errors, kind, None), type)
    assert type(raised(m.Failure(kind, "words"))) is StoreError
