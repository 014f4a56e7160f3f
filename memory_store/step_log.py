"""A shard's log: all steps since its last snapshots, in segments, so that the shard recovers alone.

A shard's life begins with a segment of its own, taken before it reads those of its predecessors. So of two processes that
believe to be the shard, the older finds, after it has synced a record and before it acknowledges it, that a newer segment
exists: it stops. And what it may still have written into its own segment stands behind the end that the newer one has
pinned, and does not count.

A snapshot (`Base`) is the shard's files in a cut; the cut's other parts don't matter here. A cut begins a new segment, and
when it is written the segments before the oldest base whose cut still exists are removed. If the newest base turns
out to be damaged, the one before and more of the log lead to the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from memory_store.cuts import MANIFEST
from memory_store.errors import LogError, SupersededError
from memory_store.log_records import (
    Base,
    End,
    GroupState,
    Kind,
    LoggedBase,
    LoggedCut,
    LoggedGroup,
    LoggedStart,
    LoggedStep,
    LogRecord,
    Opening,
    Payload,
    decode_base,
    decode_group,
    decode_opening,
    decode_seqs,
    decode_step,
    encode_model,
    encode_step,
)
from memory_store.log_segment import Record, first_chain, framed, read_records
from memory_store.log_storage import LogStorage

_SUFFIX = ".log"
_SEGMENT = re.compile(r"segment-\d{8}\.log")


@dataclass(frozen=True)
class _Segment:
    name: str
    opening: Opening
    bases: tuple[Base, ...]


@dataclass(frozen=True)
class LogContent:
    """What the predecessors of a shard have left: `bases`, oldest first, the group in charge, and the steps."""

    bases: list[Base]
    group: GroupState
    _segments: list[tuple[str, memoryview]]

    def steps(self, version: int) -> Iterator[LoggedStep]:
        """The steps from `version` on, in order. Raises LogError if one is missing, or damaged."""
        expected = version
        for name, data in self._segments:
            for record in read_records(name, data, len(data)):
                if record.kind != Kind.STEP or record.version < version:
                    continue
                if record.version != expected:
                    raise LogError(f"The log lacks step {expected}: {name} goes on with {record.version}.")
                expected += 1
                yield decode_step(record.version, record.head, record.body)


class StepLog:
    """The log of one shard in `storage`, taken over by a new incarnation.

    First `read` what is there, then `resume` behind it or `start` anew, then `append` and `sync`. Not for several threads.
    """

    def __init__(
        self, storage: LogStorage, *, shard: int, placement: str, tables: str, incarnation: str
    ) -> None:
        self._storage = storage
        self._identity = Opening(
            shard=shard, placement=placement, tables=tables, incarnation=incarnation, version=0
        )
        self._before = _segment_names(storage)
        self._number = _number(self._before[-1]) + 1 if self._before else 1
        # First of all: from here on a predecessor that still runs acknowledges nothing.
        storage.create(_name(self._number))
        self._size, self._chain = 0, first_chain(_name(self._number))
        self._segments: list[_Segment] = []
        self._end: End | None = None

    # ---- taking over -------------------------------------------------------------------------------------------

    def read(self) -> LogContent | None:
        """What the predecessors have left, None if nothing. Raises LogError where it is damaged or another shard's."""
        found: list[tuple[str, memoryview]] = []
        group = GroupState()
        following: Opening | None = None
        for name in reversed(self._before):
            end = following.previous if following is not None else None
            if end is not None and name != end.name:
                continue
            # What is read counts from now on, so it must not be lost any more.
            self._storage.sync(name)
            data = self._storage.read(name)
            records = list(_without_bodies(read_records(name, data, end.size if end is not None else None)))
            if not records:
                continue  # a predecessor that ended before it had begun
            if end is not None and records[-1].chain != end.chain:
                raise LogError(f"{name} is not the segment that {self._segments[0].name} goes on from.")
            opening = self._opening_of(name, records[0])
            bases = [decode_base(record.head) for record in records if record.kind == Kind.BASE]
            if following is None:
                self._end = End(name=name, size=records[-1].end, chain=records[-1].chain)
                group = _group_after(opening, records)
            self._segments.insert(0, _Segment(name, opening, (*filter(None, [opening.base]), *bases)))
            found.insert(0, (name, data[: records[-1].end]))
            following = opening
            if opening.previous is None:
                break
        if not self._segments:
            return None
        first = self._segments[0].opening.version
        bases = [base for segment in self._segments for base in segment.bases if base.version >= first]
        if not bases:
            raise LogError(
                f"The log begins at version {first} in {self._segments[0].name}, and no snapshot is that old."
            )
        return LogContent(bases, group, found)

    def _opening_of(self, name: str, record: Record) -> Opening:
        if record.kind != Kind.OPENING:
            raise LogError(f"{name} does not begin with an opening.")
        opening, mine = decode_opening(record.head), self._identity
        if (opening.format, opening.shard, opening.placement, opening.tables) != (
            mine.format,
            mine.shard,
            mine.placement,
            mine.tables,
        ):
            raise LogError(
                f"{name} is of shard {opening.shard} of placement {opening.placement}, this is shard {mine.shard} of "
                f"{mine.placement}, or its tables are others; give every job a log folder of its own."
            )
        return opening

    def resume(self, version: int, group: GroupState) -> None:
        """Go on behind what was read, which led to `version`. Raises OSError as `append` does."""
        self._open(version, group, previous=self._end)
        self._storage.sync(self._current)

    def start(self, base: Base, group: GroupState) -> None:
        """Begin anew at `base`; what was there is removed. Raises OSError as `append` does."""
        self._open(base.version, group, base=base)
        self._storage.sync(self._current)
        self._keep_from(len(self._segments) - 1)

    # ---- writing -----------------------------------------------------------------------------------------------

    def append(self, record: LogRecord) -> None:
        """Write a record; it counts from the next `sync` on.

        Raises OSError where the disk refuses it: then nothing has been written, and it may be tried again. Raises
        SupersededError where a successor is in the way.
        """
        match record:
            case LoggedStep():
                self._write(encode_step(record))
            case LoggedGroup():
                self._write(encode_model(Kind.GROUP, 0, record.group))
            case LoggedBase():
                self._write(encode_model(Kind.BASE, record.base.version, record.base))
                segment = self._segments[-1]
                self._segments[-1] = _Segment(segment.name, segment.opening, (*segment.bases, record.base))
                self._storage.sync(self._current)
                self._keep_from(self._first_needed())
            case LoggedCut():
                self._storage.sync(self._current)
                end = End(name=self._current, size=self._size, chain=self._chain)
                with self._next_segment():
                    self._open(record.version, record.group, previous=end)
            case LoggedStart():
                with self._next_segment():
                    self._open(record.base.version, record.group, base=record.base)
                self._storage.sync(self._current)
                self._keep_from(len(self._segments) - 1)

    def sync(self) -> None:
        """Return once all that was appended outlives a crash.

        Raises SupersededError if a successor has taken the log over: then nothing of it may be acknowledged.
        """
        self._storage.sync(self._current)
        self._check_in_charge()

    def _check_in_charge(self) -> None:
        newest = _segment_names(self._storage)[-1]
        if newest > self._current:
            raise SupersededError(
                f"Another process has taken over shard {self._identity.shard} with {newest}; this one ends."
            )

    @property
    def _current(self) -> str:
        return _name(self._number)

    def _write(self, payload: Payload) -> None:
        pieces, chain = framed(payload, self._chain)
        self._storage.append(self._current, pieces)
        self._size, self._chain = self._size + sum(len(piece) for piece in pieces), chain

    @contextmanager
    def _next_segment(self) -> Iterator[None]:
        """Write into a new segment from here on, unless what is done in it fails."""
        before = self._number, self._size, self._chain
        name = _name(self._number + 1)
        try:
            self._storage.create(name)
        except FileExistsError:
            raise SupersededError(
                f"Another process has taken over shard {self._identity.shard} with {name}; this one ends."
            ) from None
        self._number, self._size, self._chain = self._number + 1, 0, first_chain(name)
        try:
            yield
        except OSError:
            self._storage.remove(name)
            self._number, self._size, self._chain = before
            raise

    def _open(
        self, version: int, group: GroupState, *, previous: End | None = None, base: Base | None = None
    ) -> None:
        opening = self._identity.model_copy(
            update={"version": version, "group": group, "previous": previous, "base": base}
        )
        self._write(encode_model(Kind.OPENING, version, opening))
        self._segments.append(_Segment(self._current, opening, (base,) if base is not None else ()))

    # ---- removing what is not needed any more --------------------------------------------------------------------

    def _first_needed(self) -> int:
        """The segment with which the second newest base that can still be read begins."""
        *older, newest = (base for segment in self._segments for base in segment.bases)
        needed = next((base for base in reversed(older) if _exists(base)), newest).version
        return max(index for index, segment in enumerate(self._segments) if segment.opening.version <= needed)

    def _keep_from(self, first: int) -> None:
        """Remove older segments, the oldest first: what is left is always a log without a gap.

        Everything that was appended must have been synced: a successor, if there is none yet, will read that.
        """
        self._check_in_charge()
        self._segments = self._segments[first:]
        for name in _segment_names(self._storage):
            if name < self._segments[0].name:
                self._storage.remove(name)


def _exists(base: Base) -> bool:
    return base.folder is None or (Path(base.folder) / MANIFEST).is_file()


def _name(number: int) -> str:
    return f"segment-{number:08d}{_SUFFIX}"


def _number(name: str) -> int:
    return int(name.removeprefix("segment-").removesuffix(_SUFFIX))


def _segment_names(storage: LogStorage) -> list[str]:
    return [name for name in storage.names() if _SEGMENT.fullmatch(name)]


def _without_bodies(records: Iterator[Record]) -> Iterator[Record]:
    """Arrays are looked at only when they are replayed."""
    return (record._replace(body=memoryview(b"")) for record in records)


def _group_after(opening: Opening, records: list[Record]) -> GroupState:
    group = opening.group
    for record in records:
        if record.kind == Kind.GROUP:
            group = decode_group(record.head)
        elif record.kind == Kind.STEP:
            group = group.model_copy(update={"seqs": decode_seqs(record.head)})
    return group
