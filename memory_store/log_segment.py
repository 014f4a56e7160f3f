"""A segment of a log: records one after the other in one file, each with checksums that lead to the next.

A record takes whole blocks of 4 KiB, so that it can be written past the page cache. It begins with 64 bytes: mark,
checksum of the rest of these bytes, checksum of the payload, and what the payload is. The first checksum starts from that
of the record before (of a segment's first record: from its name), so a record that was changed, moved, doubled or left
out is found by the next one too.

Reading stops at the first byte that is not as it was written:
- The file ends inside a record: a write that a crash cut short. What was acknowledged was synced before, whole, so the
  rest is not: it counts as never written.
- Anything else is damage, also at the end of the file: LogError names the file and the place. An acknowledged record is
  never given up silently.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from memory_store.errors import LogError
from memory_store.log_records import ALIGNMENT, Kind, Payload

_MARK = b"pkmlog01"
_HEADER = struct.Struct(
    "<8sIIQIIQ24x"
)  # mark, header checksum, payload checksum, payload bytes, kind, head bytes, version
_CHECKED_FROM = 12
HEADER_BYTES = _HEADER.size
BLOCK_BYTES = 4096
HEAD_BYTES_MAX = 64 << 20


class Record(NamedTuple):
    """A record as it was read: `head` is JSON, `body` its arrays and some zeros; the next one goes on at `end`, `chain`."""

    kind: Kind
    version: int
    head: bytes
    body: memoryview
    end: int
    chain: int


def first_chain(name: str) -> int:
    """What the checksums of segment `name` start from."""
    return zlib.crc32(name.encode())


def framed(payload: Payload, chain: int) -> tuple[list[memoryview], int]:
    """A record's bytes behind a record whose chain is `chain`, and its own chain."""
    size = HEADER_BYTES + sum(len(piece) for piece in payload.pieces)
    pieces = [*payload.pieces, memoryview(bytes(-size % BLOCK_BYTES))]
    size, checksum = 0, 0
    for piece in pieces:
        size += len(piece)
        checksum = zlib.crc32(piece, checksum)
    header = bytearray(
        _HEADER.pack(_MARK, 0, checksum, size, payload.kind, payload.head_bytes, payload.version)
    )
    own = _header_checksum(header, chain)
    struct.pack_into("<I", header, len(_MARK), own)
    return [memoryview(header), *pieces], own


def read_records(name: str, data: memoryview, until: int | None = None) -> Iterator[Record]:
    """The records of a segment, up to offset `until` or up to the last one that is whole.

    Raises LogError where a record is damaged, and where the segment ends before `until`.
    """
    position, chain = 0, first_chain(name)
    while (until is None or position < until) and len(data) - position >= HEADER_BYTES:
        header = bytes(data[position : position + HEADER_BYTES])
        mark, own, checksum, size, kind, head_bytes, version = _HEADER.unpack(header)
        if mark != _MARK or own != _header_checksum(header, chain):
            raise _damaged(name, position, "the header of a record does not match its checksum")
        if (
            kind not in tuple(Kind)
            or (HEADER_BYTES + size) % BLOCK_BYTES
            or not head_bytes <= min(size, HEAD_BYTES_MAX)
        ):
            raise _damaged(name, position, "a record is of a form that is not known here")
        begin = position + HEADER_BYTES
        if size > len(data) - begin:
            break
        payload = data[begin : begin + size]
        if zlib.crc32(payload) != checksum:
            raise _damaged(name, begin, "a record does not match its checksum")
        body = payload[-(-head_bytes // ALIGNMENT) * ALIGNMENT :]
        position, chain = begin + size, own
        yield Record(Kind(kind), version, bytes(payload[:head_bytes]), body, position, chain)
    if until is not None and position != until:
        raise _damaged(name, position, f"the segment after it says that it goes on to {until}")


def _header_checksum(header: bytes | bytearray, chain: int) -> int:
    return zlib.crc32(memoryview(header)[_CHECKED_FROM:], chain)


def _damaged(name: str, position: int, what: str) -> LogError:
    return LogError(f"The log is damaged in {name} at byte {position}: {what}.")
