"""A shard with credentials answers those of its own job that may ask, and nobody else, in any call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import grpc
import pytest

from memory_store import TableSpec, connect
from memory_store import messages as m
from memory_store.carriers.grpc_client import GrpcCarrier
from memory_store.carriers.grpc_credentials import SHARD_NAME, Credentials
from memory_store.carriers.grpc_server import METHOD, ShardServer
from memory_store.carriers.grpc_sign_of_life import ALIVE_METHOD, TOKEN_KEY, Sign, sign_of_life
from memory_store.errors import StoreError
from memory_store.opening import in_process_hosts
from memory_store.wire import frames
from workers.job_certificates import JobCertificates, make_certificates

TOKEN = "the token of the job"
METHODS = [METHOD, ALIVE_METHOD, "/pkm.store.v1.ShardService/None", "/grpc.health.v1.Health/Check"]


@pytest.fixture(scope="module")
def own() -> JobCertificates:
    return make_certificates()


@pytest.fixture(scope="module")
def server(own: JobCertificates) -> Iterator[ShardServer]:
    (host,) = in_process_hosts([TableSpec("memory", rows=4096, dim=8)])
    server = ShardServer(host, "127.0.0.1:0", TOKEN, credentials=own.shards)
    yield server
    server.stop(0)


def strangers(own: JobCertificates) -> dict[str, grpc.ChannelCredentials | None]:
    other = make_certificates()

    def tls(authority: bytes, shown: Credentials | None) -> grpc.ChannelCredentials:
        key, certificate = (shown.key, shown.certificate) if shown else (None, None)
        return grpc.ssl_channel_credentials(authority, key, certificate)

    return {
        "in the open": None,
        "no certificate": tls(own.trainers.authority, None),
        "of another job": tls(own.trainers.authority, other.trainers),
        "a shard's, to ask with": tls(own.trainers.authority, own.shards),
        "trusts another job": tls(other.trainers.authority, own.trainers),
    }


def test_trainers_of_the_job_are_answered(server: ShardServer, own: JobCertificates) -> None:
    address = f"127.0.0.1:{server.port}"
    carrier = GrpcCarrier(address, TOKEN, credentials=own.trainers)
    assert isinstance(carrier.submit(m.Describe(), 20).result(20), m.ShardInfo)
    carrier.close()
    assert sign_of_life(address, 20, TOKEN, own.trainers) == Sign.ALIVE
    client = connect([address], token=TOKEN, credentials=own.trainers, in_place=False)
    assert client.specs["memory"].rows == 4096
    client.close()


@pytest.mark.parametrize("method", METHODS)
def test_nobody_else_is_answered_in_any_call(server: ShardServer, own: JobCertificates, method: str) -> None:
    address = f"127.0.0.1:{server.port}"
    options = [("grpc.ssl_target_name_override", SHARD_NAME)]
    for who, credentials in strangers(own).items():
        if credentials is None:
            channel = grpc.insecure_channel(address)
        else:
            channel = grpc.secure_channel(address, credentials, options)
        call = channel.stream_stream(method)(frames(m.Describe()), metadata=[(TOKEN_KEY, TOKEN)], timeout=10)
        with channel, pytest.raises(grpc.RpcError) as refused:
            list(call)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE, who  # type: ignore[attr-defined]


def test_a_certificate_is_not_enough_without_the_token(server: ShardServer, own: JobCertificates) -> None:
    carrier = GrpcCarrier(f"127.0.0.1:{server.port}", "another token", credentials=own.trainers)
    with pytest.raises(StoreError, match="belongs to another job"):
        carrier.submit(m.Describe(), 20).result(20)
    carrier.close()


def test_keys_are_not_shown(own: JobCertificates) -> None:
    assert "PRIVATE" not in repr(own)
    assert "PRIVATE" in own.shards.key.decode()
    assert replace(own.shards, key=b"") != own.shards
