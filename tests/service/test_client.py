"""The client of the job service: what programs see of it, also when connections are lost."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from memory_store.errors import UsageError
from service.client import Client, JobUpdate
from service.jobs.errors import JobConflictError, NoSuchJobError, NotAllowedError, ServerUnreachableError
from service.jobs.job import Job
from service.jobs.states import JobState
from tests.cutting_proxy import CuttingProxy
from tests.service.jobs.running_service import TENANTS, Service, running_service
from tests.small_job import small_job
from workers.job_spec import JobSpec


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running_service(tmp_path / "service") as running:
        yield running


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with client_of(service) as found:
        yield found


def client_of(service: Service, tenant: str = "ann") -> Client:
    return Client(f"127.0.0.1:{service.port}", TENANTS[tenant])


def job_for(service: Service, name: str = "small") -> JobSpec:
    return small_job(service.data / "shared" / "corpus", name=name)


def test_what_was_submitted_comes_back(service: Service, client: Client) -> None:
    spec = job_for(service)
    job = client.submit(spec, priority=3)
    details = client.get(job.id[:6])
    assert (details.job, details.spec) == (job, spec)
    assert (job.name, job.tenant, job.priority, job.state) == ("small", "ann", 3, JobState.QUEUED)
    assert (job.started_at, job.ended_at) == (None, None)
    assert [(change.state, change.reason) for change in details.changes] == [("queued", "submitted")]
    kept = service.database.get(job.id)
    assert vars(job) == {key: value for key, value in vars(kept).items() if key != "number"}


def test_asking_for_the_same_job_twice(service: Service, client: Client) -> None:
    job = client.submit(job_for(service), request_id="mine")
    assert client.submit(job_for(service), request_id="mine") == job
    assert client.submit(job_for(service)) != job
    with pytest.raises(JobConflictError, match="was used for another job"):
        client.submit(job_for(service, "other"), request_id="mine")


def test_a_submission_whose_answer_is_lost_is_sent_again_and_makes_one_job(service: Service) -> None:
    proxy = CuttingProxy(f"127.0.0.1:{service.port}")
    with Client(proxy.address, TENANTS["ann"]) as client:
        client.submit(job_for(service))  # connected
        proxy.arm("hold answer")
        jobs: list[Job] = []
        thread = threading.Thread(target=lambda: jobs.append(client.submit(job_for(service))))
        thread.start()
        deadline = time.monotonic() + 20
        while not proxy.fired["hold answer"] and time.monotonic() < deadline:
            time.sleep(0.01)
        proxy.arm(None)
        proxy.cut()
        thread.join(20)
    assert proxy.fired["hold answer"]
    assert [job.id for job in jobs] == [service.database.newest()[0].id]
    assert len(service.database.newest()) == 2
    proxy.close()


def test_all_jobs_are_listed_however_many_pages_that_takes(
    service: Service, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.client._PAGE", 3)
    made = [client.submit(job_for(service, f"n{number % 2}")) for number in range(8)]
    cancelled = client.cancel(made[5].id, "enough")
    assert (cancelled.state, cancelled.reason) == (JobState.CANCELLED, "enough")
    assert [job.id for job in client.list()] == [job.id for job in reversed(made)]
    assert list(client.list([JobState.CANCELLED])) == [cancelled]
    assert [job.id for job in client.list(name="n0")] == [made[number].id for number in (6, 4, 2, 0)]


def test_pausing_and_going_on(service: Service, client: Client) -> None:
    job = client.submit(job_for(service))
    assert client.pause(job.id).state == JobState.PAUSED
    assert client.resume(job.id).state == JobState.QUEUED
    client.cancel(job.id)
    with pytest.raises(JobConflictError, match="submit it again"):
        client.resume(job.id)


def test_what_goes_wrong_has_an_error_of_its_own(service: Service, client: Client) -> None:
    with pytest.raises(NoSuchJobError, match="There is no job 'nothing'"):
        client.get("nothing")
    with pytest.raises(UsageError, match="reads from"):
        client.submit(small_job(Path("/elsewhere")))
    with (
        Client(f"127.0.0.1:{service.port}", "wrong") as stranger,
        pytest.raises(NotAllowedError, match="needs a token"),
    ):
        next(stranger.watch("x"))
    with pytest.raises(ServerUnreachableError, match="does not answer; is it running"):
        Client("127.0.0.1:1", "token", timeout_s=1).get("x")
    with pytest.raises(ServerUnreachableError):
        next(Client("127.0.0.1:1", "token").watch("x", patience_s=0.1))


def test_a_watch_goes_on_over_a_restart_of_the_service(tmp_path: Path) -> None:
    """What has changed while the service was away is told too, and nothing twice."""
    with running_service(tmp_path / "service") as service:
        port = service.port
        watching = client_of(service)
        job = watching.submit(job_for(service))
        updates: list[JobUpdate] = []
        begun = threading.Event()

        def watch() -> None:
            for update in watching.watch(job.id):
                updates.append(update)
                begun.set()

        thread = threading.Thread(target=watch)
        thread.start()
        assert begun.wait(20)
        service.database.move(job.id, JobState.STARTING, "there is room")
    with running_service(tmp_path / "service", port=port) as service:
        for state in (JobState.RUNNING, JobState.RECOVERING, JobState.RUNNING, JobState.SUCCEEDED):
            service.database.move(job.id, state, "")
        thread.join(30)
        assert not thread.is_alive()
    told = [change.state for update in updates for change in update.changes]
    assert told == ["queued", "starting", "running", "recovering", "running", "succeeded"]
    assert updates[-1].job.state == JobState.SUCCEEDED
    watching.close()


def test_a_service_that_is_long_away_is_looked_for_every_second() -> None:
    """gRPC's own pauses between tries to connect would grow to two minutes."""
    with socket.create_server(("127.0.0.1", 0)) as hanging_up:
        hanging_up.settimeout(6)
        client = Client(f"127.0.0.1:{hanging_up.getsockname()[1]}", "token")

        def watch() -> None:
            with contextlib.suppress(ServerUnreachableError, ValueError):
                next(client.watch("x"))

        threading.Thread(target=watch, daemon=True).start()
        for _ in range(8):
            hanging_up.accept()[0].close()
        client.close()


def test_a_log_in_which_nothing_happens_is_followed_over_two_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time the service may be away for as long as the follower's patience is."""
    now = 0.0
    clock = SimpleNamespace(monotonic=lambda: now, sleep=time.sleep)
    monkeypatch.setattr("service.client.time", clock)
    connected = threading.Semaphore(0)
    failed: list[Exception] = []

    def follow() -> None:
        try:
            assert list(following.logs(job.id, follow=True, patience_s=60.0)) == []
        except Exception as error:
            failed.append(error)

    def recorded(name: str) -> Callable[..., Iterator[Any]]:
        def call(*arguments: Any, **options: Any) -> Iterator[Any]:
            for answer in method(name)(*arguments, **options):
                connected.release()
                yield answer

        return call

    with running_service(tmp_path / "service") as service:
        port = service.port
        following = client_of(service)
        job = following.submit(job_for(service))
        method = following._method
        monkeypatch.setattr(following, "_method", recorded)
        thread = threading.Thread(target=follow)
        thread.start()
        assert connected.acquire(timeout=60)
    with running_service(tmp_path / "service", port=port):
        assert connected.acquire(timeout=60)
        now += 100.0
    with running_service(tmp_path / "service", port=port) as service:
        assert connected.acquire(timeout=60)
        service.database.move(job.id, JobState.CANCELLED, "")
        thread.join(60)
    assert not thread.is_alive()
    assert failed == []
    following.close()
