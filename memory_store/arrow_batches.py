"""The record batches of an Arrow IPC file that nobody vouches for.

Arrow believes what a file says of itself: a few compressed bytes that claim to be a terabyte are given a terabyte of memory.
So each message is looked at before Arrow reads it: its head is small, the schema is the expected one, and nothing is
compressed. What a batch holds are then views of the file, and no larger than that. The footer, which could name other places
in the file, is not read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from memory_store.errors import CutError

_MAGIC = b"ARROW1\0\0"
_HEAD_BYTES_MAX = 1 << 16
_METADATA_VERSION = 4  # V5; before it, compression was told in another place
# Numbers of fields in Arrow's Message.fbs
_VERSION, _HEADER, _COMPRESSION = 0, 2, 3


@contextmanager
def open_messages(path: Path, schema: pa.Schema) -> Iterator[Iterator[pa.Message]]:
    """The messages of the batches in the file at `path`, which live as long as the block.

    Raises CutError where one is not a plain batch of `schema`; ArrowException or OSError where it is not Arrow at all.
    """
    with pa.memory_map(str(path)) as source:
        if source.read(len(_MAGIC)) != _MAGIC:
            raise CutError(f"{path} is not a table file: it does not begin as one.")
        messages = iter(pa.ipc.MessageReader.open_stream(source))
        if pa.ipc.read_schema(_checked(next(messages, None), "schema", path)) != schema:
            raise CutError(f"{path} holds other columns than the table has.")
        yield (_checked(message, "record batch", path) for message in messages)


def _checked(message: pa.Message | None, kind: str, path: Path) -> pa.Message:
    if message is None or message.type != kind:
        raise CutError(
            f"{path} is not a table file: it has a {message.type if message else 'end'} for a {kind}."
        )
    if message.metadata.size > _HEAD_BYTES_MAX:
        raise CutError(
            f"{path} is not a table file: the head of a message has {message.metadata.size} bytes; it may have "
            f"{_HEAD_BYTES_MAX}."
        )
    if not _is_plain(message.metadata.to_pybytes(), kind):
        raise CutError(f"{path} is compressed, or of an old kind; the files of cuts are not.")
    return message


def _is_plain(head: bytes, kind: str) -> bool:
    """Whether the head of a message, which Arrow has found to be a flatbuffer, is of today's format and not of compressed
    buffers."""
    (message,) = struct.unpack_from("<I", head)
    version = _field(head, message, _VERSION)
    if version is None or struct.unpack_from("<h", head, version) != (_METADATA_VERSION,):
        return False
    place = _field(head, message, _HEADER)
    if place is None:
        return False
    (offset,) = struct.unpack_from("<I", head, place)
    return kind != "record batch" or _field(head, place + offset, _COMPRESSION) is None


def _field(head: bytes, table: int, number: int) -> int | None:
    """Where in a flatbuffer a field of the table at `table` lies; None if it has none."""
    (back,) = struct.unpack_from("<i", head, table)
    (vtable_bytes,) = struct.unpack_from("<H", head, table - back)
    entry = 4 + 2 * number
    if entry >= vtable_bytes:
        return None
    (offset,) = struct.unpack_from("<H", head, table - back + entry)
    return table + offset if offset else None
