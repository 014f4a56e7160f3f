"""Messages to bytes and back.

A message becomes a protobuf Header (its scalar fields, and for each array its name, type and shape) followed
by the arrays' bytes in chunks of at most 1 MiB. On the wire every part is a protobuf Frame; chunks are framed
and unframed here by hand, because a large `bytes` field would be copied several times on its way through
protobuf.

Vectors of float32 may travel as bfloat16 (wire_types.py): arrays of two dimensions in the table's compute type.
Everything else travels as it is, bit for bit.

Decoding trusts nothing: shapes and sizes are checked against a limit before memory is taken, and what does
not fit raises StoreError.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from itertools import chain
from typing import Any, NamedTuple, cast, get_args, get_type_hints

import numpy as np
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from memory_store import messages as m
from memory_store.errors import PkmError, StoreError, error_named
from memory_store.reused_memory import empty
from memory_store.wire_types import WireType, narrow, widen
from protos import store_pb2 as pb

CHUNK_BYTES = 1 << 20
PAYLOAD_BYTES_MAX = 8 << 30
ARRAYS_MAX = 8
ARRAY_DIMENSIONS_MAX = 4

_ELEMENT_TYPES: dict[np.dtype[Any], pb.ElementType] = {
    np.dtype(np.float32): pb.FLOAT32,
    np.dtype(np.float64): pb.FLOAT64,
    np.dtype(np.int32): pb.INT32,
    np.dtype(np.int64): pb.INT64,
    np.dtype(np.uint32): pb.UINT32,
    np.dtype(np.uint16): pb.BFLOAT16,  # its bit patterns, here alone
}
_DTYPES = {element: dtype for dtype, element in _ELEMENT_TYPES.items()}
_COMPUTE_TYPES: frozenset[np.dtype[Any]] = frozenset({np.dtype(np.float32), np.dtype(np.float64)})
_BFLOAT16 = np.dtype(np.uint16)
_ZEROS = memoryview(bytes(64))
_CHUNK_TAG = b"\x12"  # field 2 of Frame, length-delimited


class Terms(NamedTuple):
    """What a request asks of its answer: when it must be there, and how its vectors travel."""

    timeout_ms: int = 0
    wire: WireType = "float32"


PLAIN = Terms()


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _array_fields(cls: type) -> dict[str, tuple[frozenset[np.dtype[Any]], int]]:
    """The array fields of a message class: the element types each may have, and its number of dimensions."""
    found = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        if hasattr(hint, "__metadata__"):
            array, shape = get_args(hint)[0], hint.__metadata__[0]
            (element,) = get_args(get_args(array)[1])
            types = _COMPUTE_TYPES if element is Any else frozenset({np.dtype(element)})
            dimensions = len(shape.split(","))
            if element is Any and dimensions == 2:
                types |= {_BFLOAT16}
            found[name] = (types, dimensions)
    return found


_CLASSES: dict[str, type] = {_snake(cls.__name__): cls for cls in get_args(m.Request) + get_args(m.Reply)}
_ARRAY_FIELDS = {cls: _array_fields(cls) for cls in _CLASSES.values()}


def encode_header(message: m.Request | m.Reply, terms: Terms = PLAIN) -> tuple[pb.Header, list[NDArray[Any]]]:
    """A message's header, and its arrays, contiguous, in the header's order (not narrowed yet)."""
    cls = type(message)
    narrowing = terms.wire == "bfloat16"
    header = pb.Header(timeout_ms=terms.timeout_ms, vectors=pb.BFLOAT16 if narrowing else None)
    body: Message = getattr(header, _snake(cls.__name__))
    body.SetInParent()
    arrays = []
    for field in fields(message):
        value = getattr(message, field.name)
        if field.name in _ARRAY_FIELDS[cls]:
            array = np.ascontiguousarray(value)
            arrays.append(array)
            travels = array.dtype
            if narrowing and travels == np.float32 and _BFLOAT16 in _ARRAY_FIELDS[cls][field.name][0]:
                travels = _BFLOAT16
            header.arrays.add(name=field.name, type=_ELEMENT_TYPES[travels], shape=array.shape)
        elif is_dataclass(value):
            getattr(body, field.name).CopyFrom(pb.Sender(**vars(value)))
        else:
            setattr(body, field.name, value)
    return header, arrays


def payload_bytes(header: pb.Header, limit: int = PAYLOAD_BYTES_MAX) -> int:
    """Bytes of all arrays a header announces.

    Raises StoreError if an announcement is malformed or above the limit.
    """
    if len(header.arrays) > ARRAYS_MAX:
        raise StoreError(f"A message with {len(header.arrays)} arrays came; it may have {ARRAYS_MAX}.")
    total = 0
    for array in header.arrays:
        if array.type not in _DTYPES or len(array.shape) > ARRAY_DIMENSIONS_MAX:
            raise StoreError(
                f"An array of element type {array.type} and {len(array.shape)} dimensions can't be read; "
                f"types {sorted(_DTYPES)} and up to {ARRAY_DIMENSIONS_MAX} dimensions can."
            )
        size = _DTYPES[array.type].itemsize
        total = _aligned(total) + size * math.prod(array.shape)
        # A length of 0 must not hide another that no array can have.
        if max(total, size * math.prod(max(1, length) for length in array.shape)) > limit:
            raise StoreError(
                f"An array of shape {list(array.shape)} was announced, {total} bytes with those before it; "
                f"the arrays of a message may have {limit} bytes."
            )
    return total


def decode(header: pb.Header, payload: NDArray[np.uint8]) -> m.Request | m.Reply:
    """The message of a header and its payload (uint8 `[bytes]`); arrays are views of the payload, or widened."""
    kind = header.WhichOneof("body")
    if kind is None:
        raise StoreError("A message without a known body came; client and shard are of different versions.")
    cls, body = _CLASSES[kind], getattr(header, kind)
    wanted = _ARRAY_FIELDS[cls]
    arrays: dict[str, NDArray[Any]] = {}
    position = 0
    for array in header.arrays:
        dtype, shape = _DTYPES[array.type], tuple(array.shape)
        types, dimensions = wanted.get(array.name, (frozenset(), 0))
        if dtype not in types or len(shape) != dimensions:
            raise StoreError(
                f"A {cls.__name__} has no array {array.name!r} of {dtype} and {len(shape)} dimensions."
            )
        position = _aligned(position)
        end = position + dtype.itemsize * math.prod(shape)
        found = payload[position:end].view(dtype).reshape(shape)
        arrays[array.name] = widen(found) if dtype == _BFLOAT16 else found
        position = end
    if len(arrays) != len(wanted) or len(arrays) != len(header.arrays):
        raise StoreError(
            f"A {cls.__name__} has the arrays {list(wanted)}, each once; "
            f"it came with {[array.name for array in header.arrays]}."
        )
    scalars: dict[str, Any] = {}
    for field in fields(cls):
        if field.name not in arrays:
            value = getattr(body, field.name)
            scalars[field.name] = (
                m.Sender(value.session, value.epoch, value.writer) if isinstance(value, pb.Sender) else value
            )
    return cast("m.Request | m.Reply", cls(**scalars, **arrays))


# ---- frames ------------------------------------------------------------------------------------------------


def frames(message: m.Request | m.Reply, terms: Terms = PLAIN) -> Iterator[bytes]:
    """A message as serialised Frames: its arrays in chunks, the header before the first."""
    header, arrays = encode_header(message, terms)
    opening = pb.Frame(header=header).SerializeToString()
    pieces: list[memoryview] = []
    gathered = position = 0
    for array, announced in zip(arrays, header.arrays, strict=True):
        padding = _aligned(position) - position
        position += padding + _DTYPES[announced.type].itemsize * array.size
        for data in (_ZEROS[:padding], *_travelling(array, announced.type)):
            while len(data):
                piece = data[: CHUNK_BYTES - gathered]
                pieces.append(piece)
                gathered, data = gathered + len(piece), data[len(piece) :]
                if gathered == CHUNK_BYTES:
                    yield _framed(opening, pieces, gathered)
                    opening, pieces, gathered = b"", [], 0
    if opening or gathered:
        yield _framed(opening, pieces, gathered)


def _travelling(array: NDArray[Any], element: pb.ElementType) -> Iterator[memoryview]:
    """The bytes of a contiguous array as `element`; narrowed a chunk at a time, which stays in the cache."""
    flat = array.reshape(-1)
    if element != pb.BFLOAT16:
        yield flat.view(np.uint8).data
        return
    step = CHUNK_BYTES // _BFLOAT16.itemsize
    for begin in range(0, flat.size, step):
        yield narrow(flat[begin : begin + step]).view(np.uint8).data


def _framed(opening: bytes, pieces: list[memoryview], size: int) -> bytes:
    return b"".join([opening, _CHUNK_TAG, _varint(size), *pieces]) if size else opening


def _aligned(position: int) -> int:
    """Arrays start at multiples of 64 bytes of the payload, so that views of it are aligned."""
    return -(-position // 64) * 64


def read_frames(stream: Iterable[bytes], limit: int = PAYLOAD_BYTES_MAX) -> tuple[m.Request | m.Reply, Terms]:
    """The message that serialised Frames make, and its terms.

    Raises StoreError if they don't make one.
    """
    frames_left = iter(stream)
    first = next(frames_left, None)
    if first is None:
        raise StoreError("A call ended before its first frame.")
    try:
        opening = pb.Frame.FromString(first)
    except DecodeError:
        raise StoreError("The first frame of a call can't be read.") from None
    header = opening.header
    size = payload_bytes(header, limit)
    try:
        payload = empty((size,), np.uint8)
    except MemoryError:
        raise StoreError(f"No memory is left for a message of {size} bytes.") from None
    position = 0
    for piece in chain([memoryview(opening.chunk)], map(_chunk, frames_left)):
        if position + len(piece) > size:
            raise StoreError(f"More than the {size} bytes that were announced came.")
        payload[position : position + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
        position += len(piece)
    if position != size:
        raise StoreError(f"A call ended after {position} of the {size} bytes that were announced.")
    wire: WireType = "bfloat16" if header.vectors == pb.BFLOAT16 else "float32"
    try:
        return decode(header, payload), Terms(header.timeout_ms, wire)
    except MemoryError:
        raise StoreError(f"No memory is left to widen a message of {size} bytes.") from None


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _chunk(frame: bytes) -> memoryview:
    """The bytes inside a serialised Frame that holds a chunk."""
    length, shift, position = 0, 0, 1
    if frame[:1] == _CHUNK_TAG:
        while position < min(len(frame), 6):
            byte = frame[position]
            length |= (byte & 0x7F) << shift
            shift, position = shift + 7, position + 1
            if byte < 0x80:
                if position + length == len(frame):
                    return memoryview(frame)[position:]
                break
    raise StoreError("A frame that should hold a chunk is malformed.")


# ---- errors ------------------------------------------------------------------------------------------------


def failure(error: PkmError) -> m.Failure:
    return m.Failure(type(error).__name__, str(error))


def raised(reply: m.Failure) -> PkmError:
    """The error that a Failure stands for."""
    return error_named(reply.kind, reply.message)
