"""A shard's port, attacked: every call of its service, and every request that a call can carry.

The numbers are those of the table in docs/security.md. Who shows no certificate does not even come this far
(test_mutual_tls.py); here the attacker is on the shard's own host, or has one. Cuts are attacked in test_cut_attacks.py.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from memory_store import messages as m
from memory_store.carriers.grpc_client import GrpcCarrier
from memory_store.carriers.grpc_server import DEADLINE_S_MAX, METHOD, READING_MAX
from memory_store.carriers.grpc_sign_of_life import ALIVE_METHOD, TOKEN_KEY
from memory_store.errors import FencedError, PkmError, StoreError
from memory_store.wire import Terms, frames
from protos import store_pb2 as pb
from tests.memory_store.carriers.attacked_shard import (
    DEADLINE_S,
    OFFSETS,
    ROW_VECTORS,
    ROWS,
    SENDER,
    TOKEN,
    VECTORS,
    WEIGHTS,
    Shard,
    requests,
)

METHODS = [
    f"/{service.full_name}/{method.name}"
    for service in pb.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
BODIES: list[FieldDescriptor] = [
    field
    for field in pb.Header.DESCRIPTOR.oneofs_by_name["body"].fields
    if field.name
    not in {"failure", "done", "shard_info", "cut_written"}  # replies: refused as such, whatever they say
]


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    (tmp_path / "cuts").mkdir()
    shard = Shard(tmp_path / "cuts")
    yield shard
    shard.close()


def test_each_request_that_there_is_is_tried_here() -> None:
    tried = {type(request).__name__ for request in requests()}
    assert tried == {kind.__name__ for kind in m.Request.__args__}  # type: ignore[attr-defined]
    assert METHODS == [METHOD, ALIVE_METHOD]


# ---- 1 and 2: who is answered ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", [*METHODS, "/pkm.store.v1.ShardService/None", "/grpc.health.v1.Health/Check", "/"]
)
def test_no_call_is_answered_without_the_jobs_token(shard: Shard, method: str) -> None:
    before = shard.content()
    given: list[list[tuple[str, str | bytes]]] = [
        [], [(TOKEN_KEY, "")], [(TOKEN_KEY, "wrong")], [(TOKEN_KEY, TOKEN + "x")], [(TOKEN_KEY, TOKEN[:-1])],
        [(TOKEN_KEY, TOKEN.upper())], [("authorization", f"Bearer {TOKEN}")], [(TOKEN_KEY + "-bin", TOKEN.encode())],
        [(TOKEN_KEY, "x" * 8000)], [(TOKEN_KEY, TOKEN), (TOKEN_KEY, "wrong")],
    ]  # fmt: skip
    channel = shard.channel()
    for metadata in given:
        for sent in ([], list(frames(m.ClearAccesses("memory")))):
            with pytest.raises(grpc.RpcError) as refused:
                list(channel.stream_stream(method)(iter(sent), metadata=metadata, timeout=DEADLINE_S))
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED, metadata  # type: ignore[attr-defined]
            assert TOKEN not in str(refused.value)
    assert shard.content() == before


@pytest.mark.parametrize("method", METHODS)
def test_who_has_no_token_takes_no_thread(shard: Shard, method: str) -> None:
    """A stream that never says anything is refused all the same."""
    ended = threading.Event()

    def silence() -> Iterator[bytes]:
        ended.wait()
        yield b""

    calls = [
        shard.channel().stream_stream(method)(silence(), metadata=[(TOKEN_KEY, "wrong")], timeout=DEADLINE_S)
        for _ in range(20)
    ]
    for call in calls:
        assert call.code() == grpc.StatusCode.UNAUTHENTICATED
    ended.set()


@pytest.mark.parametrize(
    "sender",
    [m.Sender("session", 4, 0), m.Sender("session", 6, 0), m.Sender("session", 2**64 - 1, 0), m.Sender("other", 5, 0),
     m.Sender("", 0, 0), m.Sender("session", 5, 1), m.Sender("session", 5, 2**32 - 1)],
)  # fmt: skip
def test_no_request_of_a_stranger_to_the_group_changes_anything(shard: Shard, sender: m.Sender) -> None:
    """The body says who sends, the token whose job it is: one without the other is refused."""
    before = shard.content()
    for request in requests(sender):
        if hasattr(request, "sender"):
            with pytest.raises(StoreError):
                shard.ask(request)
    assert shard.content() == before


# ---- 4: text where a name is expected ----------------------------------------------------------------------------

TEXTS = [
    "../../etc/passwd",
    "/etc/passwd",
    "\0",
    "memory\0",
    "x" * 4096,
    "../" * 1000,
    "~",
    "$(id)",
    "'; DROP TABLE",
    "\u202e",
]


def text_fields(kind: Descriptor, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for field in kind.fields:
        if field.type == FieldDescriptor.TYPE_STRING:
            yield (*path, field.name)
        elif field.message_type is not None and not field.is_repeated:
            yield from text_fields(field.message_type, (*path, field.name))


def test_no_text_in_any_request_opens_a_file_or_changes_a_row(shard: Shard, tmp_path: Path) -> None:
    before, files = shard.content(), sorted(tmp_path.rglob("*"))
    honest = {pb_name(request): request for request in requests()}
    tried = 0
    for body in BODIES:
        if body.name not in honest or body.name == "open_group":
            continue  # a session is a name that opens nothing, chosen by who opens a group
        for path in text_fields(body.message_type):
            for text in TEXTS:
                first, *others = frames(honest[body.name], Terms(1000))
                frame = pb.Frame.FromString(first)
                where: Message = getattr(frame.header, body.name)
                for step in path[:-1]:
                    where = getattr(where, step)
                setattr(where, path[-1], text)
                with pytest.raises(PkmError) as refused:
                    shard.send([frame.SerializeToString(), *others])
                assert len(str(refused.value)) < 5000
                tried += 1
    assert tried > 10 * len(TEXTS)
    assert shard.content() == before
    assert sorted(tmp_path.rglob("*")) == files


def pb_name(request: m.Request) -> str:
    return next(body.name for body in BODIES if body.message_type.name == type(request).__name__)


# ---- 6: updates --------------------------------------------------------------------------------------------------

BIG = 2**32 - 1


def bad_updates() -> dict[str, m.Request]:
    rates = np.array([0.1])
    nan = np.full((3, 4), np.nan, np.float32)

    def rows(
        addresses: object, vectors: object = ROW_VECTORS, step: int = 0, table: str = "memory"
    ) -> m.Request:
        return m.RowGradient(SENDER, 1, step, table, np.asarray(addresses, np.uint32), np.asarray(vectors))

    def entries(offsets: object = OFFSETS, addresses: object = ROWS, **others: object) -> m.Request:
        weights, vectors = others.get("weights", WEIGHTS), others.get("vectors", VECTORS)
        return m.EntryGradient(
            SENDER, 1, 0, "memory", np.asarray(offsets, np.int32), np.asarray(addresses, np.uint32),
            np.asarray(weights, np.float32), np.asarray(vectors, np.float32),
        )  # fmt: skip

    return {
        "a row that does not exist": rows([0, 1, BIG]),
        "a row of another shard": rows([0, 1, 40]),
        "the last row that int32 has": rows([0, 1, 2**31 - 1]),
        "one row after that": rows([0, 1, 2**31]),
        "no vectors": rows([0, 1, 5], np.empty((0, 4), np.float32)),
        "vectors without rows": rows([]),
        "too few dimensions": rows([0, 1, 5], np.ones((3, 3), np.float32)),
        "too many dimensions": rows([0, 1, 5], np.ones((3, 400), np.float32)),
        "no dimensions": rows([0, 1, 5], np.ones((3, 0), np.float32)),
        "numbers of another type": rows([0, 1, 5], np.ones((3, 4), np.float64)),
        "no numbers": rows([0, 1, 5], nan),
        "infinity": rows([0, 1, 5], nan * 0 + np.inf),
        "a step long past the end": rows([0, 1, 5], step=2**63),
        "a table that is none": rows([0, 1, 5], table="other"),
        "offsets that fall": entries([0, 3, 1]),
        "offsets below nothing": entries([-1, 1, 3]),
        "offsets beyond the end": entries([0, 1, 2**31 - 1]),
        "no offsets": entries([]),
        "fewer weights than entries": entries(weights=[1.0]),
        "infinite weights": entries(weights=[np.inf] * 3),
        "more tokens than vectors": entries(vectors=np.ones((1, 4))),
        "a row of nobody": entries(addresses=[0, 1, BIG]),
        "no learning rate": m.Commit(SENDER, 1, 0, 0, False, 1.0, np.empty(0)),
        "too many learning rates": m.Commit(SENDER, 1, 0, 0, False, 1.0, np.ones(1000)),
        "a learning rate that is none": m.Commit(SENDER, 1, 0, 0, False, 1.0, np.array([np.nan])),
        "a scale that is none": m.Commit(SENDER, 1, 0, 0, False, float("inf"), rates),
        "a commit of the far future": m.Commit(SENDER, 1, 2**63, 0, False, 1.0, rates),
        "scales of nothing held": m.Apply(SENDER, 0, np.array([np.nan])),
    }  # fmt: skip


@pytest.mark.parametrize("name", bad_updates())
def test_a_bad_update_is_refused_and_changes_nothing(shard: Shard, name: str) -> None:
    before = shard.content()
    with pytest.raises(PkmError):
        shard.ask(bad_updates()[name])
    # Nor does it wait anywhere, to be applied with the step.
    shard.ask(m.Commit(SENDER, 1, 0, 0, False, 1.0, np.array([0.1])))
    assert shard.content()[:-1] == before[:-1]


def announced(**change: object) -> list[bytes]:
    """An update whose head says of its first array what is not so."""
    frame = pb.Frame.FromString(next(frames(requests()[5], Terms(1000))))
    array = frame.header.arrays[0]
    for name, value in change.items():
        if name == "shape":
            array.shape[:] = value  # type: ignore[assignment]
        else:
            setattr(array, name, value)
    return [frame.SerializeToString()]


@pytest.mark.parametrize(
    "sent",
    [
        announced(shape=[2**62]), announced(shape=[2**64 - 1]), announced(shape=[0, 2**63]), announced(shape=[2**32, 2**32]),
        announced(shape=[1] * 1000), announced(shape=[]), announced(type=99), announced(name="gradients"),
        announced(name="x" * 4096), announced(type=pb.FLOAT64), announced(shape=[2]), announced(shape=[4]),
        [b""], [b"\xff" * 1000], [b"\x0a\xff\xff\xff\xff\x0f"], [],
        [pb.Frame(header=pb.Header(arrays=[pb.Array(type=pb.FLOAT32)] * 100_000)).SerializeToString()],
        [pb.Frame(chunk=b"x" * 1000).SerializeToString()] * 3,
    ],
)  # fmt: skip
def test_a_malformed_or_giant_update_is_refused_unread(shard: Shard, sent: list[bytes]) -> None:
    before = shard.content()
    with pytest.raises(StoreError):
        shard.send(sent)
    assert shard.content() == before


def test_a_row_named_twice_is_summed_and_updated_once(shard: Shard, tmp_path: Path) -> None:
    """Not a mistake: the oracle is the same gradient, summed by who sends it."""
    twice = m.RowGradient(SENDER, 1, 0, "memory", np.array([5, 5, 1], np.uint32), ROW_VECTORS)
    summed = m.RowGradient(
        SENDER, 1, 0, "memory", np.array([1, 5], np.uint32), np.array([[1.0] * 4, [2.0] * 4], np.float32)
    )
    other = Shard(tmp_path)
    for each, update in ((shard, twice), (other, summed)):
        each.ask(update)
        each.ask(m.Commit(SENDER, 2, 0, 1, False, 1.0, np.array([0.1])))
    assert shard.content() == other.content()
    other.close()


# ---- 8: replays --------------------------------------------------------------------------------------------------


def test_a_captured_update_is_a_duplicate_or_denied_for_ever(shard: Shard) -> None:
    captured = [
        list(frames(request, Terms(1000)))
        for request in (requests()[5], m.Commit(SENDER, 2, 0, 1, False, 1.0, np.array([0.1])))
    ]
    assert shard.send(captured[0]) == m.Done(duplicate=False)
    assert isinstance(shard.send(captured[1]), m.Committed)
    after_step = shard.content()
    for _ in range(3):
        assert shard.send(captured[0]) == m.Done(duplicate=True)
        assert isinstance(shard.send(captured[1]), m.Committed)
    assert shard.content() == after_step
    for epoch in (6, 7, 100, 2**64 - 1):  # guessed
        for sent in captured:
            frame = pb.Frame.FromString(sent[0])
            getattr(frame.header, frame.header.WhichOneof("body")).sender.epoch = epoch
            with pytest.raises(FencedError):
                shard.send([frame.SerializeToString()])
    assert shard.content() == after_step
    shard.ask(m.OpenGroup("successor", 6, 1))
    for sent in captured:
        with pytest.raises(FencedError):
            shard.send(sent)
    with pytest.raises(FencedError):
        shard.ask(m.OpenGroup(SENDER.session, SENDER.epoch, 1))
    assert shard.content() == after_step


# ---- 7: too much ---------------------------------------------------------------------------------------------------


def test_a_call_without_a_deadline_is_refused(shard: Shard) -> None:
    for deadline_s in (None, DEADLINE_S_MAX + 1000):
        with pytest.raises(grpc.RpcError) as refused:
            shard.send(list(frames(m.Describe())), deadline_s)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]


def test_a_wait_does_not_outlive_its_call(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the request says that it may be waited for."""
    waits, call = [], shard.host.call

    def waiting(request: m.Request, timeout_s: float, traceparent: str = "") -> m.Reply:
        waits.append(timeout_s)
        return call(request, timeout_s, traceparent)

    monkeypatch.setattr(shard.host, "call", waiting)
    request = m.Fetch("memory", 9, False, ROWS, np.empty(0, np.uint32), np.empty(0, np.float32))
    with pytest.raises((grpc.RpcError, StoreError)):
        shard.send(list(frames(request, Terms(2**32 - 1))), 2.0)
    assert len(waits) == 1
    # gRPC rounds a deadline up by a hundredth when it writes it; the request itself says seven weeks.
    assert waits[0] <= 2.0 * 1.05


def test_who_opens_all_that_he_can_keeps_no_other_trainer_out(shard: Shard) -> None:
    over = threading.Event()

    def silence() -> Iterator[bytes]:
        over.wait()
        yield b""

    metadata = [(TOKEN_KEY, TOKEN)]
    streams = [
        channel.stream_stream(METHOD)(silence(), metadata=metadata, timeout=600)
        for channel in [shard.channel() for _ in range(12)]
        for _ in range(10)
    ]  # each waits for a frame in a thread of its own here, and so they are no more
    assert len(streams) > 2 * READING_MAX
    silent = [socket.create_connection(("127.0.0.1", shard.server.port)) for _ in range(300)]
    carrier = GrpcCarrier(shard.address, TOKEN)
    try:
        flood = [(TOKEN_KEY, TOKEN), ("x-flood", "x" * 40_000)]
        for _ in range(20):
            assert isinstance(carrier.submit(m.Describe(), DEADLINE_S).result(), m.ShardInfo)
            with pytest.raises(grpc.RpcError):
                list(shard.channels[0].stream_stream(METHOD)(iter([]), metadata=flood, timeout=DEADLINE_S))
        with ThreadPoolExecutor(8) as many:
            asked = [many.submit(carrier.submit, m.Describe(), DEADLINE_S) for _ in range(500)]
            assert all(isinstance(each.result().result(), m.ShardInfo) for each in asked)
    finally:
        over.set()
        for stream in streams:
            stream.cancel()
        for connection in silent:
            connection.close()
        carrier.close()


# ---- 9: secrets ----------------------------------------------------------------------------------------------------


def test_the_token_is_in_no_answer_log_or_argument(
    shard: Shard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    said = []
    for request in requests():
        try:
            said.append(repr(shard.ask(request)))
        except PkmError as error:
            said.append(str(error))

    def broken(*_: object) -> None:
        raise RuntimeError("/some/path of the host")

    monkeypatch.setattr(shard.host, "call", broken)
    for request in requests():
        with pytest.raises(grpc.RpcError) as failed:
            shard.ask(request)
        assert failed.value.code() == grpc.StatusCode.INTERNAL  # type: ignore[attr-defined]
        said.append(str(failed.value))
    assert not any(TOKEN in text or "/some/path" in text for text in said)
    assert TOKEN not in caplog.text
    assert TOKEN.encode() not in Path("/proc/self/cmdline").read_bytes()
