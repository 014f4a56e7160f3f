"""What a shard's log says: the records, and their form as bytes.

A record is a head (JSON) and arrays, each padded with zeros to a multiple of 64 bytes, so that arrays are read in place,
aligned. A *step* is the contributions of all writers as the shard grouped them: what `TablePart.update` is called with,
so that replaying a step is calling it again. Nothing is pickled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memory_store.cuts import CutFile
from memory_store.errors import LogError
from memory_store.optimizers import Contributions

ALIGNMENT = 64
Model = TypeVar("Model", bound=BaseModel)
_DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype(np.float32), "float64": np.dtype(np.float64)}


class Kind(IntEnum):
    """The kinds of records, as numbers on the disk."""

    OPENING = 1
    GROUP = 2
    STEP = 3
    BASE = 4


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GroupState(_Model):
    """The group in charge, and the last applied `seq` of each of its writers."""

    session: str = ""
    epoch: int = 0
    writers: int = 0
    seqs: dict[int, int] = {}


class Base(_Model):
    """Where the tables at `version` are: files of a cut, or (None) the first values."""

    version: int
    folder: str | None = None
    files: tuple[CutFile, ...] = ()


class End(_Model):
    """Where a segment ended when the next took over; what stands behind it was never acknowledged."""

    name: str
    size: int
    chain: int


class Opening(_Model):
    """The first record of a segment. Without `previous` the log begins here, at `base`."""

    format: int = 1
    shard: int
    placement: str
    tables: str
    incarnation: str
    previous: End | None = None
    version: int
    base: Base | None = None
    group: GroupState = GroupState()


@dataclass(frozen=True, eq=False)
class TableUpdate:
    """What a step did to one table."""

    table: str
    learning_rate: float
    scale: float
    contributions: Contributions


@dataclass(frozen=True, eq=False)
class Replacement:
    """Rows of a table that were replaced after a step: addresses uint32 `[U]`, distinct, and values `[U, D]`."""

    table: str
    addresses: NDArray[np.uint32]
    values: NDArray[Any]


@dataclass(frozen=True, eq=False)
class LoggedStep:
    """Step `step` as it was applied, and the last applied `seq` of every writer after it."""

    step: int
    seqs: dict[int, int]
    updates: tuple[TableUpdate, ...]
    replacements: tuple[Replacement, ...] = ()


@dataclass(frozen=True)
class LoggedGroup:
    """A group has taken over."""

    group: GroupState


@dataclass(frozen=True)
class LoggedStart:
    """The tables were replaced by those of `base`: what was logged before does not matter any more."""

    base: Base
    group: GroupState


@dataclass(frozen=True)
class LoggedCut:
    """A cut of the tables at `version` begins: later records go into a segment of their own."""

    version: int
    group: GroupState


@dataclass(frozen=True)
class LoggedBase:
    """The files of a cut are on the disk."""

    base: Base


LogRecord = LoggedStep | LoggedGroup | LoggedStart | LoggedCut | LoggedBase


class Payload(NamedTuple):
    """A record as bytes: `pieces` one after the other, the first of `head_bytes` before its padding."""

    kind: Kind
    version: int
    head_bytes: int
    pieces: list[memoryview]


class _TableHead(_Model):
    table: str
    learning_rate: float
    scale: float
    dtype: str
    rows: int = Field(ge=0)
    entries: int = Field(ge=0)
    vectors: int = Field(ge=0)
    dim: int = Field(ge=1)


class _ReplacementHead(_Model):
    table: str
    dtype: str
    rows: int = Field(ge=0)
    dim: int = Field(ge=1)


class _StepHead(_Model):
    seqs: dict[int, int]
    tables: tuple[_TableHead, ...]
    replacements: tuple[_ReplacementHead, ...] = ()


def encode_model(kind: Kind, version: int, model: BaseModel) -> Payload:
    """A record that is all head."""
    return _payload(kind, version, model, [])


def encode_step(step: LoggedStep) -> Payload:
    """A step, its arrays as they are (not copied)."""
    heads, arrays = [], []
    for update in step.updates:
        grouped = update.contributions
        heads.append(
            _TableHead(
                table=update.table,
                learning_rate=update.learning_rate,
                scale=update.scale,
                dtype=grouped.vectors.dtype.name,
                rows=grouped.addresses.size,
                entries=grouped.weights.size,
                vectors=grouped.vectors.shape[0],
                dim=grouped.vectors.shape[1],
            )
        )
        arrays += [
            grouped.addresses,
            grouped.starts,
            grouped.vector_numbers,
            grouped.weights,
            grouped.vectors,
        ]
    replaced = []
    for part in step.replacements:
        rows, dim = part.values.shape
        replaced.append(_ReplacementHead(table=part.table, dtype=part.values.dtype.name, rows=rows, dim=dim))
        arrays += [part.addresses, part.values]
    head = _StepHead(seqs=step.seqs, tables=tuple(heads), replacements=tuple(replaced))
    return _payload(Kind.STEP, step.step, head, arrays)


def _payload(kind: Kind, version: int, head: BaseModel, arrays: list[NDArray[Any]]) -> Payload:
    text = head.model_dump_json().encode()
    pieces: list[memoryview] = []
    for data in (
        memoryview(text),
        *(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data for array in arrays),
    ):
        pieces.append(data)
        if len(data) % ALIGNMENT:
            pieces.append(memoryview(bytes(-len(data) % ALIGNMENT)))
    return Payload(kind, version, len(text), pieces)


def decode_opening(head: bytes) -> Opening:
    """Raises LogError if `head` is none."""
    return _parsed(Opening, head)


def decode_group(head: bytes) -> GroupState:
    return _parsed(GroupState, head)


def decode_base(head: bytes) -> Base:
    return _parsed(Base, head)


def decode_step(step: int, head: bytes, body: memoryview) -> LoggedStep:
    """The step of a head and the arrays behind it, which stay views of `body`.

    Raises LogError unless they make contributions that the kernels can take; whether a shard owns the addresses, and
    the form of its tables, is for the shard to check.
    """
    read = _parsed(_StepHead, head)
    arrays = _arrays(read, body)
    updates = []
    for table in read.tables:
        addresses, starts, numbers, weights, vectors = (next(arrays) for _ in range(5))
        contributions = Contributions(
            addresses, starts, numbers, weights, vectors.reshape(table.vectors, table.dim)
        )
        _check_contributions(contributions)
        updates.append(TableUpdate(table.table, table.learning_rate, table.scale, contributions))
    replacements = []
    for part in read.replacements:
        rows, values = next(arrays), next(arrays)
        replacements.append(Replacement(part.table, rows, values.reshape(part.rows, part.dim)))
    return LoggedStep(step, read.seqs, tuple(updates), tuple(replacements))


def decode_seqs(head: bytes) -> dict[int, int]:
    """The last applied `seq` of every writer after the step with this head."""
    return _parsed(_StepHead, head).seqs


def _arrays(head: _StepHead, body: memoryview) -> Iterator[NDArray[Any]]:
    """The arrays of a step, those of its updates first, as `encode_step` lines them up."""
    forms: list[tuple[np.dtype[Any], int]] = []
    for table in head.tables:
        compute = _compute_type(table.dtype)
        forms += [
            (np.dtype(np.uint32), table.rows),
            (np.dtype(np.int32), table.rows + 1),
            (np.dtype(np.int32), table.entries),
            (compute, table.entries),
            (compute, table.vectors * table.dim),
        ]
    for part in head.replacements:
        forms += [(np.dtype(np.uint32), part.rows), (_compute_type(part.dtype), part.rows * part.dim)]
    position = 0
    for dtype, count in forms:
        size = dtype.itemsize * count
        if position + size > len(body):
            raise LogError(f"A step announces more than the {len(body)} bytes that it has.")
        yield np.frombuffer(body, dtype=dtype, count=count, offset=position)
        position += math.ceil(size / ALIGNMENT) * ALIGNMENT


def _compute_type(name: str) -> np.dtype[Any]:
    if name not in _DTYPES:
        raise LogError(f"A step holds vectors of type {name}; {', '.join(_DTYPES)} are allowed.")
    return _DTYPES[name]


def _check_contributions(grouped: Contributions) -> None:
    starts, numbers = grouped.starts, grouped.vector_numbers
    sound = (
        (grouped.addresses[1:] > grouped.addresses[:-1]).all()
        and starts[0] == 0
        and starts[-1] == grouped.weights.size
        and (starts[1:] > starts[:-1]).all()
        and (numbers.size == 0 or (numbers.min() >= 0 and numbers.max() < grouped.vectors.shape[0]))
    )
    if not sound:
        raise LogError("A step's contributions are not grouped by row.")


def _parsed(model: type[Model], head: bytes) -> Model:
    try:
        return model.model_validate_json(head)
    except ValidationError as error:
        raise LogError(
            f"A {model.__name__.strip('_')} of the log can't be read: {error.error_count()} mistakes."
        ) from None
