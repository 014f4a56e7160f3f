"""Who gets in, and what he learns: every call of every service on the port is tried without a token, and with another's."""

from __future__ import annotations

import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from memory_store.errors import UsageError
from protos import jobs_pb2 as pb
from service.jobs import api
from service.jobs.api import SERVICE
from service.jobs.server import MESSAGE_BYTES_MAX, Certificate
from service.jobs.submissions import Submissions
from service.jobs.tokens import Tokens, bearer, digest_of, own_token
from tests.service.jobs.running_service import TENANTS, Caller, Service, running_service
from tests.service.jobs.test_api import refused, submission

METHODS = [method.name for method in SERVICE.methods]
CANARY = "canary-5f2a"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running_service(tmp_path / "service") as running:
        yield running


def empty_request(method: str) -> object:
    return getattr(pb, SERVICE.methods_by_name[method].input_type.name)()


@pytest.mark.parametrize("method", METHODS)
def test_no_call_is_answered_without_a_token(service: Service, method: str) -> None:
    token = TENANTS["ann"]
    metadata = [
        [], [bearer("")], [bearer("wrong")], [bearer(token + "x")], [bearer(token[:-1])], [bearer(digest_of(token))],
        [("authorization", token)], [("authorization", f"bearer {token}")], [bearer(token), bearer("wrong")],
        [("x-token", token)], [bearer("x" * 4000)],
    ]  # fmt: skip
    for given in metadata:
        caller = service.caller(None)
        code, said = refused(Caller(caller.channel, given), method, empty_request(method))
        assert code == grpc.StatusCode.UNAUTHENTICATED, given
        assert token not in said


def test_nothing_else_on_the_port_answers_without_a_token(service: Service) -> None:
    channel = service.caller(None).channel
    for method in (
        "/no.such.Service/Call",
        f"/{SERVICE.full_name}/NoSuchCall",
        "/grpc.health.v1.Health/Watch",
    ):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(method)(b"", timeout=20)
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    with pytest.raises(grpc.RpcError) as caught:
        list(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(asked, timeout=20))
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_health_is_told_to_everyone_and_the_calls_to_who_has_a_token(service: Service) -> None:
    channel = service.caller(None).channel
    for name in ("", SERVICE.full_name):
        asked = health_pb2.HealthCheckRequest(service=name)
        told = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=20)
        assert told.status == health_pb2.HealthCheckResponse.SERVING
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    (listed,) = stub.ServerReflectionInfo(requests, timeout=20, metadata=[bearer(TENANTS["ann"])])
    names = {found.name for found in listed.list_services_response.service}
    assert {SERVICE.full_name, "grpc.health.v1.Health"} <= names


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("Submit", "List", "Cluster")])
def test_the_job_of_another_tenant_is_no_job_in_any_call(service: Service, method: str) -> None:
    ann, bob = (service.caller(TENANTS[name]) for name in ("ann", "bob"))
    job = ann.call("Submit", submission(service))
    request = empty_request(method)
    for beginning in (job.id, job.id[:1], ""):
        request.id = beginning  # type: ignore[attr-defined]
        code, said = refused(bob, method, request)
        assert code == grpc.StatusCode.NOT_FOUND
        assert "small" not in said
    assert bob.call("List", pb.ListRequest()).jobs == []
    assert ann.call("Get", pb.JobRequest(id=job.id)).job == job


@pytest.mark.parametrize("method", METHODS)
def test_an_error_inside_tells_nothing_of_itself(
    service: Service, method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError(f"{CANARY} in /some/path")

    for name in ("submit", "find", "newest", "cancel", "pause", "resume"):
        monkeypatch.setattr(service.database, name, broken)
    monkeypatch.setattr(Submissions, "_take", broken)
    code, said = refused(service.caller(TENANTS["ann"]), method, empty_request_that_passes(method))
    assert code == grpc.StatusCode.INTERNAL
    assert CANARY not in said
    assert "/some" not in said
    reference = said.rpartition("under ")[2].rstrip(".")
    assert any(reference in record.getMessage() for record in caplog.records)
    assert TENANTS["ann"] not in caplog.text


def empty_request_that_passes(method: str) -> object:
    return pb.SubmitRequest(request_id="r", spec="{}") if method == "Submit" else empty_request(method)


def test_what_is_no_message_or_too_large_is_refused_and_the_service_goes_on(service: Service) -> None:
    ann = service.caller(TENANTS["ann"])
    for method in METHODS:
        call = ann.channel.unary_unary(f"/{SERVICE.full_name}/{method}")
        for payload, code in (
            (b"\xff" * 100, grpc.StatusCode.INVALID_ARGUMENT),
            (b"\x0a\xff\xff\xff\xff\x0f", grpc.StatusCode.INVALID_ARGUMENT),
            (b"x" * (MESSAGE_BYTES_MAX + 1), grpc.StatusCode.RESOURCE_EXHAUSTED),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call(payload, timeout=20, metadata=ann.metadata)
            assert caught.value.code() == code
            assert "Error parsing" not in caught.value.details()
    for garbage in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 1000,
        b"\0" * 4096,
    ):
        with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
            connection.sendall(garbage)
    assert ann.call("List", pb.ListRequest()).jobs == []


def test_who_opens_all_that_he_can_keeps_nobody_out(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "STREAMS_MAX", 20)
    ann, bob = (service.caller(TENANTS[name]) for name in ("ann", "bob"))
    job = ann.call("Submit", submission(service)).id
    streams = [ann.call("Watch", pb.WatchRequest(id=job)) for _ in range(20)]
    for stream in streams:
        next(stream)
    for method in ("Watch", "Logs"):
        code, said = refused(ann, method, getattr(pb, f"{method}Request")(id=job))
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "20 watches and logs of yours" in said
    silent = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(300)]
    try:
        assert bob.call("List", pb.ListRequest()).jobs == []
        flood = Caller(bob.channel, [*bob.metadata, ("x-flood", "x" * 40_000)])
        with pytest.raises(grpc.RpcError):
            flood.call("List", pb.ListRequest())
        assert bob.call("List", pb.ListRequest()).jobs == []
    finally:
        for connection in silent:
            connection.close()
    streams[0].cancel()
    until_true(lambda: next(ann.call("Watch", pb.WatchRequest(id=job))).job.id == job)


def until_true(asked: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if asked():
                return
        except grpc.RpcError:
            time.sleep(0.05)
    raise AssertionError("it was refused to the end")


def test_an_address_that_others_reach_needs_tls(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can be reached from other machines, which needs TLS"):
        running_service(tmp_path / "service", host="0.0.0.0").__enter__()


def test_over_tls_the_service_answers_those_who_trust_it(tmp_path: Path) -> None:
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-out", chain, "-keyout", key],
        check=True, capture_output=True,
    )  # fmt: skip
    with running_service(tmp_path / "service", "0.0.0.0", Certificate(chain, key)) as service:
        trusting = service.caller(TENANTS["ann"], chain.read_bytes())
        assert trusting.call("List", pb.ListRequest()).jobs == []
        assert refused(service.caller(None, chain.read_bytes()), "List", pb.ListRequest())[0] == (
            grpc.StatusCode.UNAUTHENTICATED
        )
        assert (
            refused(service.caller(TENANTS["ann"]), "List", pb.ListRequest())[0]
            == grpc.StatusCode.UNAVAILABLE
        )


# ---- tokens ------------------------------------------------------------------------------------------------------


def test_the_own_token_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token = own_token(path)
    assert len(token) == 64
    assert own_token(path) == token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [left.name for left in tmp_path.iterdir()] == ["token"]
    path.chmod(0o640)
    with pytest.raises(UsageError, match="can be read by others"):
        own_token(path)


def test_a_token_file_holds_digests(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"# who\n\nann {digest_of('a')}\nann {digest_of('b')}\nbob {digest_of('c')}\n")
    tokens = Tokens.read(path)
    assert [tokens.tenant_of([bearer(token)]) for token in "abcd"] == ["ann", "ann", "bob", None]


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "has no token"), ("ann secret\n", ":1: write a tenant"), (f"\nA/.. {'0' * 64}\n", ":2: write a tenant")],
)  # fmt: skip
def test_a_token_file_that_is_none_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        Tokens.read(path)
