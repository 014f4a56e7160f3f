"""The calls of the job service, through its port: submitted once, seen by its tenant alone, watched to its end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos import jobs_pb2 as pb
from service.jobs.api import SERVICE
from service.jobs.folder import ServiceFolder
from service.jobs.states import JobState
from service.jobs.views import Views
from tests.service.jobs.running_service import TENANTS, Caller, Service, running_service
from tests.small_job import small_job


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running_service(tmp_path / "service") as running:
        yield running


@pytest.fixture
def ann(service: Service) -> Caller:
    return service.caller(TENANTS["ann"])


def submission(service: Service, request_id: str = "r1", **changes: Any) -> pb.SubmitRequest:
    priority = changes.pop("priority", 0)
    job = small_job(changes.pop("corpus", service.data / "shared" / "corpus"), **changes)
    return pb.SubmitRequest(request_id=request_id, spec=job.model_dump_json(), priority=priority)


def refused(caller: Caller, method: str, request: Any) -> tuple[grpc.StatusCode, str]:
    def ask() -> None:
        answer = caller.call(method, request)
        if SERVICE.methods_by_name[method].server_streaming:
            list(answer)

    with pytest.raises(grpc.RpcError) as caught:
        ask()
    return caught.value.code(), caught.value.details()


# ---- submitting and finding --------------------------------------------------------------------------------------


def test_a_job_is_submitted_once_and_found_by_the_beginning_of_its_id(service: Service, ann: Caller) -> None:
    job = ann.call("Submit", submission(service))
    assert ann.call("Submit", submission(service)) == job
    details = ann.call("Get", pb.JobRequest(id=job.id[:5]))
    assert details.job == job
    assert (job.tenant, job.name, job.state, job.wanted) == ("ann", "small", pb.QUEUED, pb.RUN)
    assert pb.JobState.Name(details.changes[0].state) == "QUEUED"
    assert small_job(service.data / "shared" / "corpus").model_dump_json() == details.spec
    code, said = refused(ann, "Submit", submission(service, seed=1))
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert "'r1' was used for another job" in said


def test_jobs_are_listed_in_pages(service: Service, ann: Caller) -> None:
    made = [
        ann.call("Submit", submission(service, f"r{number}", name=f"n{number % 2}")) for number in range(7)
    ]
    ann.call("Cancel", pb.AskRequest(id=made[0].id))
    seen: list[str] = []
    token = ""
    while True:
        page = ann.call("List", pb.ListRequest(page_size=3, page_token=token))
        seen += [job.id for job in page.jobs]
        token = page.next_page_token
        if not token:
            break
    assert seen == [job.id for job in reversed(made)]
    queued = ann.call("List", pb.ListRequest(states=[pb.QUEUED], name="n0")).jobs
    assert [job.id for job in queued] == [made[number].id for number in (6, 4, 2)]


def test_a_thousand_submissions_at_once_are_all_taken_once(service: Service) -> None:
    """Each is sent twice, as by someone who has lost the answer."""
    callers = [service.caller(TENANTS[name]) for name in ("ann", "bob")]
    requests = [(callers[number % 2], submission(service, f"r{number % 500}")) for number in range(1000)]
    with ThreadPoolExecutor(32) as pool:
        jobs = list(pool.map(lambda asked: asked[0].call("Submit", asked[1], timeout=60), requests))
    assert len({(job.tenant, job.id) for job in jobs}) == 500
    assert service.database.count()[JobState.QUEUED] == 500


# ---- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "request_", "message"),
    [
        ("Submit", pb.SubmitRequest(request_id="", spec="{}"), "request id must be 1 to 128 letters"),
        ("Submit", pb.SubmitRequest(request_id="a b", spec="{}"), "request id must be"),
        ("Submit", pb.SubmitRequest(request_id="r", spec="{}", priority=101), "is 101; it must be from -100 to 100"),
        ("Submit", pb.SubmitRequest(request_id="r", spec="{}"), "name: Field required"),
        ("Submit", pb.SubmitRequest(request_id="r", spec="]"), "the job: Invalid JSON"),
        ("Submit", pb.SubmitRequest(request_id="r", spec="[" * 100_000), "the job: Invalid JSON"),
        ("List", pb.ListRequest(page_token="x"), "page token is none"),
        ("List", pb.ListRequest(page_token="9" * 30), "page token is none"),
        ("List", pb.ListRequest(states=[0]), "the states are queued, starting"),
        ("List", pb.ListRequest(states=[77]), "the states are queued, starting"),
        ("Cancel", pb.AskRequest(id="x", reason="r" * 501), "has 501 letters"),
    ],
)  # fmt: skip
def test_a_mistake_is_said_in_a_sentence(ann: Caller, method: str, request_: Any, message: str) -> None:
    code, said = refused(ann, method, request_)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert message in said


@pytest.mark.parametrize(
    "corpus", ["/etc", "relative", "{data}/bob/corpus", "{data}/ann/../bob/corpus", "{data}/ann/link", "{data}", "/a\0b"]
)  # fmt: skip
def test_a_corpus_elsewhere_is_refused(service: Service, ann: Caller, corpus: str) -> None:
    (service.data / "ann").mkdir(exist_ok=True)
    (service.data / "ann" / "link").symlink_to("/etc")
    request = submission(service, corpus=Path(corpus.format(data=service.data)))
    assert refused(ann, "Submit", request)[0] == grpc.StatusCode.INVALID_ARGUMENT
    assert service.database.newest() == []
    assert ann.call("Submit", submission(service, corpus=service.data / "ann" / "corpus")).id


def test_a_job_that_never_fits_is_refused_at_once(tmp_path: Path) -> None:
    with running_service(tmp_path / "service", cpus=2) as service:
        ann = service.caller(TENANTS["ann"])
        code, said = refused(ann, "Submit", submission(service, store__carrier="auto", store__shards=4))
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert "asks for 4 shards" in said
        assert service.database.newest() == []


# ---- watching ----------------------------------------------------------------------------------------------------


def test_a_watch_tells_every_change_and_ends_with_the_job(service: Service, ann: Caller) -> None:
    job = ann.call("Submit", submission(service))
    watch = ann.call("Watch", pb.WatchRequest(id=job.id))
    assert next(watch).job == job
    for state in (JobState.STARTING, JobState.RUNNING):
        service.database.move(job.id, state, f"now {state}")
    asked = ann.call("Cancel", pb.AskRequest(id=job.id, reason="enough"))
    assert (asked.state, asked.wanted) == (pb.RUNNING, pb.CANCEL)
    service.database.move(job.id, JobState.CANCELLED, "after a last cut")
    updates = list(watch)
    told = [pb.JobState.Name(change.state) for update in updates for change in update.changes]
    assert told == ["STARTING", "RUNNING", "CANCELLED"]
    assert updates[-1].job.state == pb.CANCELLED
    assert updates[-1].changes_seen == 4


def test_a_watch_that_was_cut_goes_on_where_it_was(service: Service, ann: Caller) -> None:
    job = ann.call("Submit", submission(service))
    watch = ann.call("Watch", pb.WatchRequest(id=job.id))
    seen = next(watch).changes_seen
    watch.cancel()
    for state in (JobState.STARTING, JobState.RUNNING, JobState.SUCCEEDED):
        service.database.move(job.id, state, "")
    updates = list(ann.call("Watch", pb.WatchRequest(id=job.id, changes_seen=seen)))
    told = [pb.JobState.Name(change.state) for update in updates for change in update.changes]
    assert told == ["STARTING", "RUNNING", "SUCCEEDED"]


def test_no_change_is_missed_between_looking_and_waiting(
    service: Service, ann: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change that comes when the watch has looked already, and does not wait yet."""
    job = ann.call("Submit", submission(service))
    states = iter([JobState.STARTING, JobState.RUNNING, JobState.FAILED])
    look = Views._look

    def look_too_early(views: Views, job_id: str) -> Any:
        seen = look(views, job_id)
        for state in islice(states, 1):
            service.database.move(job_id, state, "")
        return seen

    monkeypatch.setattr(Views, "_look", look_too_early)
    updates = list(ann.call("Watch", pb.WatchRequest(id=job.id)))
    assert [update.job.state for update in updates] == [pb.QUEUED, pb.STARTING, pb.RUNNING, pb.FAILED]


def test_who_stops_watching_is_forgotten(tmp_path: Path, service: Service, ann: Caller) -> None:
    job = ann.call("Submit", submission(service))
    watches = [ann.call("Watch", pb.WatchRequest(id=job.id)) for _ in range(50)]
    for watch in watches:
        next(watch)
    watchers = service.database.on_change.__self__  # type: ignore[attr-defined]
    assert len(watchers._waiting[1]) == 50
    for watch in watches:
        watch.cancel()
    deadline = time.monotonic() + 20
    while watchers._waiting and time.monotonic() < deadline:
        time.sleep(0.01)
    assert watchers._waiting == {}


# ---- moving ------------------------------------------------------------------------------------------------------


def test_a_move_is_refused_where_the_job_would_lose_its_place_for_it(service: Service, ann: Caller) -> None:
    """Of 64 CPUs, another job has 30."""
    jobs = []
    for number, shards in enumerate((2, 29)):
        request = submission(service, f"r-{number}", store__carrier="auto", store__shards=shards)
        jobs.append(ann.call("Submit", request).id)
        service.database.move(jobs[-1], JobState.STARTING, "")
        service.database.move(jobs[-1], JobState.RUNNING, "")
    run = ServiceFolder(service.data.parent).run("ann", jobs[0])
    run.create(small_job(service.data / "shared" / "corpus", store__carrier="auto"))
    move = pb.ReshardRequest(id=jobs[0], shards=40)
    code, said = refused(ann, "Reshard", move)
    assert (code, run.move_path.exists()) == (grpc.StatusCode.FAILED_PRECONDITION, False)
    assert "ask for 41 CPUs" in said
    assert "other jobs have taken 30 CPUs" in said
    service.database.move(jobs[1], JobState.FAILED, "")
    asked = Caller(ann.channel, ann.metadata)
    with pytest.raises(grpc.RpcError) as waited:
        asked.call("Reshard", move, timeout=2)
    assert waited.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED  # nobody is there who moves it
    assert run.move_path.exists()
    assert service.database.get(jobs[0]).demand.shards == 40
