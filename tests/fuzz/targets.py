"""The decoders: what each is fed, from which valid inputs, and the only errors that it may raise."""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import numpy as np

from memory_store import messages as m
from memory_store.bucket_files import read_buckets, spec_as_json, write_buckets, write_delta
from memory_store.cuts import MANIFEST, CutFile, Manifest, finish_cut, read_manifest
from memory_store.errors import CutError, LogError, PkmError, StoreError, UsageError
from memory_store.frozen_part import FrozenPart
from memory_store.grouping import group_by_address
from memory_store.log_records import (
    Base,
    GroupState,
    Kind,
    LoggedStep,
    Opening,
    Payload,
    Replacement,
    TableUpdate,
    decode_base,
    decode_group,
    decode_opening,
    decode_seqs,
    decode_step,
    encode_model,
    encode_step,
)
from memory_store.log_segment import first_chain, framed, read_records
from memory_store.optimizers import Contributions
from memory_store.placement import Placement
from memory_store.request_checks import check_replayed
from memory_store.shard import ShardCore
from memory_store.table_spec import OptimizerSpec, TableSpec
from memory_store.wire import Terms, frames, read_frames
from service.job_file import load_job

SPEC = TableSpec("memory", 2000, 4, optimizer=OptimizerSpec("adam"))
SENDER = m.Sender("session", 1, 0)
NAME = "segment-00000001.log"
JOBS = Path(__file__).parents[2] / "examples"
WIRE_BYTES_MAX = 1 << 20


@dataclass(frozen=True)
class Target:
    """`feed` raises one of `refusals`, or nothing."""

    corpus: Callable[[], list[bytes]]
    feed: Callable[[bytes], None]
    refusals: tuple[type[Exception], ...]


# ---- messages ------------------------------------------------------------------------------------------------------


def _messages() -> list[m.Request | m.Reply]:
    rows = np.array([3, 5, 900], np.uint32)
    offsets = np.array([0, 1, 3], np.int32)
    weights, vectors = np.ones(3, np.float32), np.ones((2, 4), np.float32)
    none = np.empty(0, np.uint32), np.empty(0, np.float32)
    return [
        m.Describe(),
        m.OpenGroup("session", 2, 1),
        m.Initialise(SENDER, 1),
        m.Fetch("memory", 0, False, rows, *none),
        m.Fetch("memory", 0, True, rows, np.ones(3, np.uint32), weights),
        m.Pool(SENDER, "memory", 0, 7, True, True, offsets, rows, weights),
        m.PoolGradient(SENDER, 1, 0, 7, vectors),
        m.RowGradient(SENDER, 2, 0, "memory", rows, np.ones((3, 4), np.float32)),
        m.EntryGradient(SENDER, 3, 0, "memory", offsets, rows, weights, vectors),
        m.ReplaceRows(SENDER, 3, 0, "memory", rows, np.ones((3, 4), np.float32)),
        m.Commit(SENDER, 4, 0, 0, False, 1.0, np.array([0.1])),
        m.Commit(SENDER, 4, 0, 0, True, 1.0, np.array([0.1])),
        m.Apply(SENDER, 0, np.array([0.5])),
        m.CountAccesses("memory", -1),
        m.ClearAccesses("memory"),
        m.CountTouched("memory", 0),
        m.Rows(vectors),
        m.Committed(1, False, np.ones((1, 1024))),
        m.CutWritten("[]"),
        m.Failure("StoreError", "no"),
    ]


def _as_bytes() -> list[bytes]:
    """Each frame behind its length: a stream of frames as one input."""
    inputs = []
    for message in _messages():
        for wire in ("float32", "bfloat16"):
            sent = list(frames(message, Terms(1000, wire)))  # type: ignore[arg-type]
            inputs.append(b"".join(len(frame).to_bytes(4, "little") + frame for frame in sent))
    return inputs


def _frames_of(data: bytes) -> list[bytes]:
    found, position = [], 0
    while position < len(data) and len(found) < 10:
        size = int.from_bytes(data[position : position + 4], "little")
        found.append(data[position + 4 : position + 4 + size])
        position += 4 + size
    return found


def _read_message(data: bytes) -> None:
    read_frames(_frames_of(data), WIRE_BYTES_MAX)


def _serve_message(data: bytes) -> None:
    """What can be read is served by a shard, which answers, refuses, or lets it wait."""
    request, _ = read_frames(_frames_of(data), WIRE_BYTES_MAX)
    if isinstance(request, m.Request):
        core = _served()
        core.handle(1, request)
        core.abandon(1)


@cache
def _served() -> ShardCore:
    core = ShardCore([SPEC], Placement.even(1), 0)
    core.handle(0, m.OpenGroup("session", 1, 1))
    return core


# ---- the log ---------------------------------------------------------------------------------------------------------


def _payloads() -> list[Payload]:
    rows = np.array([3, 3, 1100], np.uint32)
    grouped = Contributions.grouped(
        group_by_address(rows),
        np.array([0, 1, 1], np.int32),
        np.ones(3, np.float32),
        np.ones((2, 4), np.float32),
    )
    group = GroupState(session="session", epoch=1, writers=1, seqs={0: 3})
    opening = Opening(shard=0, placement="p", tables="[]", incarnation="i", version=0, base=Base(version=0))
    return [
        encode_model(Kind.OPENING, 0, opening),
        encode_model(Kind.GROUP, 0, group),
        encode_step(LoggedStep(0, {0: 4}, (TableUpdate("memory", 0.1, 1.0, grouped),))),
        encode_step(
            LoggedStep(1, {0: 5}, (), (Replacement("memory", rows[1:], np.ones((2, 4), np.float32)),))
        ),
        encode_model(Kind.BASE, 2, Base(version=2, folder="/cuts/step-2")),
    ]


def _segment() -> list[bytes]:
    chain, pieces = first_chain(NAME), []
    for payload in _payloads():
        framed_pieces, chain = framed(payload, chain)
        pieces += framed_pieces
    return [b"".join(pieces)]


def _read_segment(data: bytes) -> None:
    for record in read_records(NAME, memoryview(data)):
        _decode_record(record.kind, record.version, record.head, record.body)


def _decode_record(kind: Kind, version: int, head: bytes, body: memoryview) -> None:
    match kind:
        case Kind.OPENING:
            decode_opening(head)
        case Kind.GROUP:
            decode_group(head)
        case Kind.BASE:
            decode_base(head)
        case Kind.STEP:
            decode_seqs(head)
            check_replayed(_served().tables, decode_step(version, head, body))


def _records() -> list[bytes]:
    inputs = []
    for payload in _payloads():
        body = b"".join(payload.pieces)
        inputs.append(bytes([payload.kind - 1]) + payload.head_bytes.to_bytes(4, "little") + body)
    return inputs


def _read_resigned_record(data: bytes) -> None:
    """A record whose checksums are right and whose content is not."""
    kind = Kind(data[0] % len(Kind) + 1) if data else Kind.STEP
    content = data[5:]
    head_bytes = min(int.from_bytes(data[1:5], "little"), len(content))
    pieces, _ = framed(Payload(kind, 3, head_bytes, [memoryview(content)]), first_chain(NAME))
    _read_segment(b"".join(pieces))


# ---- cuts ------------------------------------------------------------------------------------------------------------


@cache
def _cut() -> tuple[Path, list[CutFile]]:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-cut-"))
    part = _small().tables["memory"]
    part.last_step[::5] = 2
    entries = [
        write_buckets(folder, FrozenPart(part, 2, threading.Lock()), "0000"),
        write_delta(folder, FrozenPart(part, 2, threading.Lock(), since=1), "0000"),
    ]
    finish_cut(folder, Manifest(step=2, tables=(spec_as_json(SPEC),), files=tuple(entries)))
    return folder, entries


def _manifests() -> list[bytes]:
    return [(_cut()[0] / MANIFEST).read_bytes()]


def _read_manifest(data: bytes) -> None:
    path = Path(_scratch()) / MANIFEST
    path.write_bytes(data)
    read_manifest(path.parent)


def _manifest_bodies() -> list[bytes]:
    return [json.dumps(json.loads(_manifests()[0])["body"]).encode()]


def _read_resigned_manifest(data: bytes) -> None:
    try:
        canonical = json.dumps(json.loads(data), sort_keys=True, separators=(",", ":")).encode()
    except (ValueError, RecursionError):
        canonical = data
    digest = hashlib.sha256(canonical).hexdigest().encode()
    _read_manifest(b'{"body":' + canonical + b',"sha256":"' + digest + b'"}\n')


def _table_files() -> list[bytes]:
    folder, entries = _cut()
    return [bytes([index]) + (folder / entry.name).read_bytes() for index, entry in enumerate(entries)]


def _read_table_file(data: bytes) -> None:
    """A table file whose checksum is right and whose content is not."""
    entry = _cut()[1][data[0] % 2 if data else 0]
    path = Path(_scratch()) / entry.name
    path.write_bytes(data[1:])
    read_buckets(path.parent, [entry], _small().tables["memory"])


@cache
def _small() -> ShardCore:
    """A shard of 16 buckets."""
    return ShardCore([SPEC], Placement.even(64), 0)


@cache
def _scratch() -> str:
    return tempfile.mkdtemp(prefix="fuzz-")


# ---- job files -------------------------------------------------------------------------------------------------------


def _job_files() -> list[bytes]:
    return [path.read_bytes() for path in sorted(JOBS.glob("*.yaml"))]


def _read_job_file(data: bytes) -> None:
    path = Path(_scratch()) / "job.yaml"
    path.write_bytes(data)
    load_job(path)


TARGETS = {
    "message": Target(_as_bytes, _read_message, (StoreError,)),
    "served message": Target(_as_bytes, _serve_message, (PkmError,)),
    "log segment": Target(_segment, _read_segment, (LogError,)),
    "log record, signed": Target(_records, _read_resigned_record, (LogError,)),
    "manifest": Target(_manifests, _read_manifest, (CutError,)),
    "manifest, signed": Target(_manifest_bodies, _read_resigned_manifest, (CutError,)),
    "table file, signed": Target(_table_files, _read_table_file, (CutError,)),
    "job file": Target(_job_files, _read_job_file, (UsageError,)),
}
# Of all inputs, by how long one takes.
SHARES = {
    "message": 0.25,
    "served message": 0.15,
    "log segment": 0.2,
    "log record, signed": 0.2,
    "manifest": 0.07,
    "manifest, signed": 0.07,
    "table file, signed": 0.05,
    "job file": 0.01,
}


def feed_many(
    name: str, seed: int, count: int, mutate: Callable[[Random, list[bytes]], bytes]
) -> tuple[int, int]:
    """Feed `count` inputs; how many were refused, and how many taken. Any other error ends it, naming the input."""
    target = TARGETS[name]
    corpus, random = target.corpus(), Random(f"{name} {seed}")
    for valid in corpus:
        target.feed(valid)
    refused = 0
    for number in range(count):
        data = mutate(random, corpus)
        try:
            target.feed(data)
        except target.refusals:
            refused += 1
        except BaseException as error:
            error.add_note(f"input {number} of seed {seed} of {name!r}: {data[:100]!r}")
            raise
    return refused, count - refused
