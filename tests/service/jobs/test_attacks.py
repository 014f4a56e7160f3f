"""The service's port, attacked: every call of every service on it, found by their descriptors.

The numbers are those of the table in docs/security.md. Attack 5 has no meaning here: no call of the port takes a cut or any
other file. What else is known of the port's secrets and limits is in test_security.py.
"""

from __future__ import annotations

import gc
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from prometheus_client import generate_latest

from protos import jobs_pb2 as pb
from service.jobs import door
from service.jobs.api import SERVICE
from service.jobs.service_metrics import Observed, ServiceMetrics
from service.jobs.tokens import bearer
from tests.service.jobs.running_service import TENANTS, Caller, Service, running_service
from tests.service.jobs.test_api import refused, submission

DEADLINE_S = 60.0
SERVICES = [
    service
    for file in (pb.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
]
PORT_METHODS = [f"/{service.full_name}/{method.name}" for service in SERVICES for method in service.methods]
OPEN = "/grpc.health.v1.Health/Check"  # says that the service is well, and nothing else
METHODS = [method.name for method in SERVICE.methods]
SAID_MAX = 10_000  # of what was given, an error says no more than a part
MISTAKES = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running_service(tmp_path / "service") as running:
        yield running


def silence(over: threading.Event) -> Iterator[bytes]:
    over.wait()
    yield b""


def jobs_of(service: Service) -> list[pb.Job]:
    return [
        job for token in TENANTS.values() for job in service.caller(token).call("List", pb.ListRequest()).jobs
    ]


# ---- 1 and 2: who is answered ------------------------------------------------------------------------------------


def test_the_descriptors_name_all_that_answers_on_the_port(service: Service) -> None:
    """What reflection lists is what is attacked here."""
    channel = service.caller(None).channel
    ask = channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    (listed,) = ask(asked, timeout=DEADLINE_S, metadata=[bearer(TENANTS["ann"])])
    assert {found.name for found in listed.list_services_response.service} == {
        found.full_name for found in SERVICES
    }


@pytest.mark.parametrize("method", [*(name for name in PORT_METHODS if name != OPEN), "/no.such/Call", "/"])
def test_no_call_is_answered_without_a_token_nor_waits_for_one(service: Service, method: str) -> None:
    token, over = TENANTS["ann"], threading.Event()
    given = [
        [], [bearer("wrong")], [bearer(token[:-1])], [("authorization", token)], [bearer(token), bearer(token)],
        [("authorization-bin", token.encode())], [("x-tenant", "ann")],
    ]  # fmt: skip
    channel = service.caller(None).channel
    for metadata in given:
        for requests in (iter([b""]), iter([]), silence(over)):
            call = channel.stream_stream(method)(requests, timeout=DEADLINE_S, metadata=metadata)
            assert call.code() == grpc.StatusCode.UNAUTHENTICATED, metadata
            assert token not in call.details()
    over.set()


def test_the_tenant_is_the_tokens_and_nothing_that_a_request_could_say(service: Service) -> None:
    job = service.caller(TENANTS["ann"]).call("Submit", submission(service)).id
    bob = service.caller(TENANTS["bob"])
    claims = [
        ("tenant", "ann"),
        ("x-tenant", "ann"),
        ("x-forwarded-user", "ann"),
        ("pkm-token", TENANTS["ann"]),
    ]
    claiming = Caller(bob.channel, [*bob.metadata, *claims])
    for method in METHODS:
        request = request_of(method)
        assert "tenant" not in request.DESCRIPTOR.fields_by_name
        if "id" in request.DESCRIPTOR.fields_by_name:
            request.id = job  # type: ignore[attr-defined]
            assert refused(claiming, method, request)[0] == grpc.StatusCode.NOT_FOUND
    assert claiming.call("List", pb.ListRequest()).jobs == []
    assert claiming.call("Submit", submission(service)).tenant == "bob"


def request_of(method: str) -> Message:
    request: Message = getattr(pb, SERVICE.methods_by_name[method].input_type.name)()
    return request


# ---- 4 and 6: what is in a request -------------------------------------------------------------------------------

TEXTS = [
    "../../etc/passwd", "/etc/passwd", "\0", "a\0b", "x" * 4096, "../" * 1000, "%", "~", "'; DROP TABLE jobs; --", "$(id)",
    "\u202e", "{}", "[" * 5000, "null\n", '{"name": "a", "name": "b"}',
]  # fmt: skip
NUMBERS = [-(2**63), -(2**31), -1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1]


def fields_of(kind: Descriptor) -> list[FieldDescriptor]:
    return [
        field
        for field in kind.fields
        if field.message_type is None and field.type != FieldDescriptor.TYPE_BOOL
    ]


def ask(caller: Caller, method: str, request: Message) -> grpc.StatusCode:
    """What came of a call; an answer is one that a person could have got."""
    try:
        answer = caller.call(method, request, 5.0)
        if SERVICE.methods_by_name[method].server_streaming:
            next(answer, None)
            answer.cancel()
    except grpc.RpcError as error:
        return error.code() if len(error.details()) < SAID_MAX else grpc.StatusCode.UNKNOWN
    return grpc.StatusCode.OK


@pytest.mark.parametrize("method", METHODS)
def test_nothing_that_a_request_can_hold_opens_a_file_or_is_an_error_of_the_service(
    service: Service, method: str, tmp_path: Path
) -> None:
    """Each field of each request takes each hostile value, beside the id of a job that is the asker's."""
    ann = service.caller(TENANTS["ann"])
    job = ann.call("Submit", submission(service))
    files = sorted(path for path in tmp_path.rglob("*") if path.name != "jobs.sqlite-shm")
    request = request_of(method)
    for field in fields_of(request.DESCRIPTOR):
        for value in TEXTS if field.type == FieldDescriptor.TYPE_STRING else NUMBERS:
            asked = submission(service, "r2") if method == "Submit" else request_of(method)
            if "id" in asked.DESCRIPTOR.fields_by_name:
                asked.id = job.id  # type: ignore[attr-defined]
            try:
                if field.is_repeated:
                    getattr(asked, field.name).append(value)
                else:
                    setattr(asked, field.name, value)
            except (ValueError, TypeError):
                continue  # the field can't hold it, nor can the wire
            code = ask(ann, method, asked)
            assert code in MISTAKES | {grpc.StatusCode.OK}, (field.name, value)
            if method == "Submit":
                assert code == grpc.StatusCode.INVALID_ARGUMENT or field.name == "priority", value
    assert sorted(path for path in tmp_path.rglob("*") if path.name != "jobs.sqlite-shm") == files
    assert [kept.id for kept in jobs_of(service)].count(job.id) == 1


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from leaves(each, (*path, key))
    elif isinstance(value, str):
        yield path


def test_no_text_in_a_job_leads_out_of_the_tenants_folders(service: Service, tmp_path: Path) -> None:
    """Each text of a job in turn; only a name that is a name is taken."""
    ann, numbers = service.caller(TENANTS["ann"]), count()
    (service.data / "shared" / "out").symlink_to("/etc")
    spec = json.loads(submission(service).spec)
    out = [str(service.data / "shared" / "out" / "passwd"), str(service.data / "bob" / "corpus")]
    found = list(leaves(spec))
    assert ("data", "corpus") in found
    for path in found:
        for text in [*TEXTS, *out]:
            changed = json.loads(json.dumps(spec))
            where = changed
            for step in path[:-1]:
                where = where[step]
            where[path[-1]] = text
            request = pb.SubmitRequest(request_id=f"text-{next(numbers)}", spec=json.dumps(changed))
            assert ask(ann, "Submit", request) == grpc.StatusCode.INVALID_ARGUMENT, (path, text)
    assert jobs_of(service) == []


@pytest.mark.parametrize(
    "spec",
    ["[" * 100_000, "{" * 100_000, '{"a":' * 100_000, "1e400", "9" * 100_000, "\x00", "NaN", '"' + "x" * 1_000_000 + '"'],
)  # fmt: skip
def test_a_job_that_is_none_is_refused(service: Service, spec: str) -> None:
    ann = service.caller(TENANTS["ann"])
    assert refused(ann, "Submit", pb.SubmitRequest(request_id="r", spec=spec))[0] == (
        grpc.StatusCode.INVALID_ARGUMENT
    )


# ---- 7: too much -------------------------------------------------------------------------------------------------


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that a test reaches."""
    monkeypatch.setattr(door, "CALLS_OF_ONE_MAX", 50)
    monkeypatch.setattr(door, "REFUSALS_OF_ONE_MAX", 100)


@pytest.mark.usefixtures("narrow")
def test_a_flood_is_refused_in_words_and_delays_nobody_else(service: Service) -> None:
    ann, bob = (service.caller(TENANTS[name]) for name in ("ann", "bob"))
    over = threading.Event()
    idle = [
        ann.channel.stream_stream(f"/{SERVICE.full_name}/List")(
            silence(over), metadata=ann.metadata, timeout=DEADLINE_S
        )
        for _ in range(50)
    ]
    until_refused = time.monotonic() + DEADLINE_S
    while (code := ask(ann, "List", pb.ListRequest())) == grpc.StatusCode.OK:
        assert time.monotonic() < until_refused
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    code, said = refused(ann, "List", pb.ListRequest())
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "50 calls of yours wait for their answers already" in said
    more = [
        ann.channel.unary_unary(f"/{SERVICE.full_name}/List").future(
            b"", metadata=ann.metadata, timeout=DEADLINE_S
        )
        for _ in range(300)
    ]
    for _ in range(50):
        assert bob.call("List", pb.ListRequest(), DEADLINE_S).jobs == []
    assert {call.code() for call in more} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    over.set()
    for call in idle:
        call.cancel()
    deadline = time.monotonic() + DEADLINE_S
    while ask(ann, "List", pb.ListRequest()) != grpc.StatusCode.OK:
        assert time.monotonic() < deadline


def test_what_is_refused_leaves_no_circles_for_which_all_would_have_to_be_looked_through(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, nobody = service.caller(TENANTS["ann"]), service.caller(None)
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            assert ask(nobody, "List", pb.ListRequest()) == grpc.StatusCode.UNAUTHENTICATED
            assert ask(ann, "Get", pb.JobRequest(id="none")) == grpc.StatusCode.NOT_FOUND
            assert ask(ann, "Watch", pb.WatchRequest(id="none")) == grpc.StatusCode.NOT_FOUND
        monkeypatch.setattr(door, "CALLS_OF_ONE_MAX", 0)
        for _ in range(20):
            assert ask(ann, "List", pb.ListRequest()) == grpc.StatusCode.RESOURCE_EXHAUSTED
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        circles = Counter(type(found).__name__ for found in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert circles["_ServicerContext"] == 0


@pytest.mark.parametrize("method", [f"/{SERVICE.full_name}/{name}" for name in METHODS] + [OPEN])
def test_a_request_that_does_not_come_is_not_waited_for(
    service: Service, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "REQUEST_WITHIN_S", 0.2)
    ann, over = service.caller(TENANTS["ann"]), threading.Event()
    call = ann.channel.stream_stream(method)(silence(over), metadata=ann.metadata, timeout=DEADLINE_S)
    assert call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "has not come within 0.2 s" in call.details()
    over.set()
    ended = ann.channel.stream_stream(method)(iter([]), metadata=ann.metadata, timeout=DEADLINE_S)
    assert ended.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ten_thousand_calls_at_once_keep_nobody_out(service: Service) -> None:
    ann, bob = (service.caller(TENANTS[name]) for name in ("ann", "bob"))
    job = ann.call("Submit", submission(service)).id
    watching = [service.caller(TENANTS["ann"]) for _ in range(9)]
    streams = [each.call("Watch", pb.WatchRequest(id=job), 600) for each in watching for _ in range(100)]
    method = f"/{SERVICE.full_name}/List"
    channels = [service.caller(None).channel for _ in range(40)]  # 250 calls over each
    all_open, over = threading.Event(), threading.Event()

    def flood() -> None:
        while not over.is_set():
            calls = [
                channel.unary_unary(method).future(b"", metadata=ann.metadata, timeout=240)
                for channel in channels
                for _ in range(250)
            ]
            all_open.set()
            for call in calls:
                call.exception()

    flooder = threading.Thread(target=flood)
    flooder.start()
    try:
        assert all_open.wait(240)
        for _ in range(100):
            assert bob.call("List", pb.ListRequest(), 240).jobs == []
        assert flooder.is_alive()
    finally:
        over.set()
        flooder.join()
    for stream in streams:
        stream.cancel()


# ---- 8: replays --------------------------------------------------------------------------------------------------


def test_a_captured_submission_makes_no_second_job(service: Service) -> None:
    ann = service.caller(TENANTS["ann"])
    captured = submission(service).SerializeToString()
    send = ann.channel.unary_unary(f"/{SERVICE.full_name}/Submit")
    first = send(captured, metadata=ann.metadata, timeout=DEADLINE_S)
    before = jobs_of(service)
    for _ in range(3):
        assert send(captured, metadata=ann.metadata, timeout=DEADLINE_S) == first
    with pytest.raises(grpc.RpcError) as denied:
        send(captured, metadata=[bearer("guessed")], timeout=DEADLINE_S)
    assert denied.value.code() == grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]
    job = pb.Job.FromString(first).id
    for method in ("Cancel", "Cancel", "Pause", "Resume", "Cancel"):
        ask(ann, method, pb.AskRequest(id=job))
    assert [kept.id for kept in jobs_of(service)] == [kept.id for kept in before]
    assert ann.call("Get", pb.JobRequest(id=job)).job.state == pb.CANCELLED


# ---- 9: secrets --------------------------------------------------------------------------------------------------


def test_no_token_is_in_an_answer_a_log_an_argument_a_file_or_the_metrics(
    service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ann = service.caller(TENANTS["ann"])
    job = ann.call("Submit", submission(service)).id
    said = []
    for method in METHODS:
        request = request_of(method)
        if "id" in request.DESCRIPTOR.fields_by_name:
            request.id = job  # type: ignore[attr-defined]
        for caller in (ann, Caller(ann.channel, [bearer(TENANTS["ann"] + "x")])):
            try:
                answer = caller.call(method, request, 3.0)
                said.append(repr(next(answer, None) if hasattr(answer, "cancel") else answer))
            except grpc.RpcError as error:
                said.append(str(error))
    observed = Observed(service.database.count, list, tmp_path, lambda: True)
    said.append(generate_latest(ServiceMetrics(observed).registry).decode())
    assert "pkm_service_jobs" in said[-1]
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "jobs.sqlite" for path in kept)
    for token in TENANTS.values():
        assert not any(token in text for text in said)
        assert token not in caplog.text
        assert token.encode() not in Path("/proc/self/cmdline").read_bytes()
        for path in kept:
            assert token.encode() not in path.read_bytes(), path
