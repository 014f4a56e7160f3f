"""The carrier between processes: tokens, ports, sizes, deadlines, and what may be said when something fails."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import count

import grpc
import numpy as np
import pytest

from memory_store import TableSpec, connect
from memory_store import messages as m
from memory_store.carriers.grpc_client import GrpcCarrier
from memory_store.carriers.grpc_server import METHOD, ShardServer
from memory_store.carriers.grpc_sign_of_life import TOKEN_KEY
from memory_store.errors import FencedError, StoreError
from memory_store.opening import in_process_hosts
from memory_store.wire import CHUNK_BYTES, Terms, frames, read_frames
from protos import store_pb2 as pb

SPEC = TableSpec("memory", rows=40_960, dim=64)
TOKEN = "correct horse battery staple"


@pytest.fixture(scope="module")
def server() -> Iterator[ShardServer]:
    (host,) = in_process_hosts([SPEC])
    server = ShardServer(host, "127.0.0.1:0", TOKEN)
    yield server
    server.stop(0)


@pytest.fixture
def carrier(server: ShardServer) -> Iterator[GrpcCarrier]:
    carrier = GrpcCarrier(f"127.0.0.1:{server.port}", TOKEN)
    yield carrier
    carrier.close()


def fetch(rows: int = 1, version: int = 0) -> m.Fetch:
    none = np.empty(0, np.uint32)
    return m.Fetch("memory", version, False, np.arange(rows, dtype=np.uint32), none, np.empty(0, np.float32))


def raw_call(
    server: ShardServer,
    stream: list[bytes],
    metadata: list[tuple[str, str]] | None = None,
    method: str = METHOD,
) -> list[bytes]:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = channel.stream_stream(method)
        return list(call(iter(stream), metadata=metadata or [(TOKEN_KEY, TOKEN)], timeout=20))


# ---- who may call ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metadata",
    [
        [("other", "x")],
        [(TOKEN_KEY, "")],
        [(TOKEN_KEY, "wrong")],
        [(TOKEN_KEY, TOKEN[:-1])],
        [(TOKEN_KEY, TOKEN + "x")],
    ],
)
def test_a_call_without_the_token_is_refused_unread(server: ShardServer, metadata: list[tuple[str, str]]):
    with pytest.raises(grpc.RpcError) as refusal:
        raw_call(server, list(frames(m.Describe())), metadata)
    assert refusal.value.code() == grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]


def test_other_methods_do_not_exist(server: ShardServer):
    with pytest.raises(grpc.RpcError) as refusal:
        raw_call(server, list(frames(m.Describe())), method=METHOD + "Other")
    assert refusal.value.code() == grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]


def test_a_wrong_token_is_said_plainly(server: ShardServer):
    with pytest.raises(StoreError, match="does not take this token"):
        connect([f"127.0.0.1:{server.port}"], token="wrong")


def test_two_servers_can_not_share_a_port(server: ShardServer):
    (host,) = in_process_hosts([SPEC])
    with pytest.raises(StoreError, match=f"127.0.0.1:{server.port}"):
        ShardServer(host, f"127.0.0.1:{server.port}", TOKEN)


def test_a_new_connection_does_not_wait_with_an_old_one_whose_shard_has_died():
    (host,) = in_process_hosts([SPEC])
    dying = ShardServer(host, "127.0.0.1:0", TOKEN)
    address = f"127.0.0.1:{dying.port}"
    old = GrpcCarrier(address, TOKEN)
    old.submit(m.Describe(), 20).result()
    dying.stop(0)
    answers = (old.submit(m.Describe(), 20).result() for _ in count())
    with pytest.raises(StoreError, match="UNAVAILABLE"):
        list(answers)  # the end of the connection may be noticed a little later than the server's own
    successor = ShardServer(host, address, TOKEN)
    new = GrpcCarrier(address, TOKEN)
    assert isinstance(new.submit(m.Describe(), 20).result(), m.ShardInfo)
    for part in (old, new):
        part.close()
    successor.stop(0)


# ---- sizes and deadlines -----------------------------------------------------------------------------------


def test_large_arrays_travel_both_ways(carrier: GrpcCarrier):
    whole = carrier.submit(fetch(SPEC.rows), 60).result()
    assert isinstance(whole, m.Rows)
    assert whole.values.nbytes > 9 * CHUNK_BYTES
    (host,) = in_process_hosts([SPEC])
    here = host.call(fetch(SPEC.rows), 0)
    assert isinstance(here, m.Rows)
    assert whole.values.tobytes() == here.values.tobytes()
    # The other way: the shard sends the same addresses back as an error only if it has read all of them.
    addresses = np.arange(3_000_000, dtype=np.uint32)
    with pytest.raises(StoreError, match="not all of the rows"):
        carrier.submit(
            m.Fetch("memory", 0, False, addresses, fetch().accesses, fetch().weight_sums), 60
        ).result()


def test_more_than_the_server_takes_is_refused_before_it_is_sent():
    (host,) = in_process_hosts([SPEC])
    server = ShardServer(host, "127.0.0.1:0", TOKEN, payload_bytes_max=1024)
    carrier = GrpcCarrier(f"127.0.0.1:{server.port}", TOKEN)
    try:
        with pytest.raises(StoreError, match="may have 1024 bytes"):
            carrier.submit(fetch(257), 60).result()
        assert isinstance(carrier.submit(fetch(256), 60).result(), m.Rows)
    finally:
        carrier.close()
        server.stop(0)


def test_one_giant_frame_is_refused_by_the_transport(server: ShardServer):
    header, *_ = frames(fetch(CHUNK_BYTES))
    with pytest.raises(grpc.RpcError) as refusal:
        raw_call(server, [header, pb.Frame(chunk=bytes(4 * CHUNK_BYTES)).SerializeToString()])
    assert refusal.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]


def test_a_version_that_is_never_reached_ends_at_the_deadline(carrier: GrpcCarrier):
    with pytest.raises(StoreError, match=r"Fetch within 0\.2 s: it is at version 0 and waits for the other"):
        carrier.submit(fetch(version=5), 0.2).result(30)


def test_a_shard_that_is_gone_is_a_store_error():
    (host,) = in_process_hosts([SPEC])
    server = ShardServer(host, "127.0.0.1:0", TOKEN)
    address = f"127.0.0.1:{server.port}"
    server.stop(0)
    with pytest.raises(StoreError, match=f"{address} did not answer Describe \\(UNAVAILABLE\\)"):
        connect([address], token=TOKEN)


# ---- failures ----------------------------------------------------------------------------------------------


def test_a_refusal_arrives_with_its_class_and_words(carrier: GrpcCarrier):
    with pytest.raises(FencedError, match="Writer 7 of epoch 3 is stale"):
        carrier.submit(m.Initialise(m.Sender("old", 3, 7), 1), 60).result()


@pytest.mark.parametrize("reply", [m.Done(False), m.Failure("StoreError", "x"), m.Rows(np.ones((1, 1)))])
def test_a_reply_is_no_request(server: ShardServer, reply: m.Reply):
    answer, _ = read_frames(raw_call(server, list(frames(reply, Terms(60_000)))))
    assert isinstance(answer, m.Failure)
    assert "is no request" in answer.message


@pytest.mark.parametrize("stream", [[], [b"\xff"], [b"", b""], [pb.Frame(chunk=b"x").SerializeToString()]])
def test_noise_is_answered_with_a_failure(server: ShardServer, stream: list[bytes]):
    answer, _ = read_frames(raw_call(server, stream))
    assert isinstance(answer, m.Failure)
    assert answer.kind == "StoreError"


def test_the_text_of_an_unexpected_error_stays_in_the_log(
    server: ShardServer,
    carrier: GrpcCarrier,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    def broken(*_: object) -> None:
        raise RuntimeError("the secret of the house")

    monkeypatch.setattr("memory_store.table.gather_rows", broken)
    with caplog.at_level(logging.ERROR), pytest.raises(StoreError, match="INTERNAL") as shown:
        carrier.submit(fetch(), 60).result()
    assert "secret" not in str(shown.value)
    with pytest.raises(grpc.RpcError) as sent:
        raw_call(server, list(frames(fetch())))
    assert "secret" not in sent.value.details()  # type: ignore[attr-defined]
    assert "the secret of the house" in caplog.text
    monkeypatch.undo()
    assert isinstance(carrier.submit(fetch(), 60).result(), m.Rows)
