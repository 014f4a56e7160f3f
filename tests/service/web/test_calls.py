"""What the page is told, against what gRPC tells of the same jobs and what lies in the run's folder."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from protos import jobs_pb2 as pb
from service.jobs.states import JobState
from service.web.maps import coarsened
from tests.service.jobs.running_service import TENANTS, Service, running_service
from tests.service.web.asking import ask
from tests.service.web.planted_run import plant, slots
from workers.events import read_events


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running_service(tmp_path / "service") as running:
        yield running


def test_jobs_are_listed_in_pages_as_grpc_lists_them(service: Service) -> None:
    planted = [plant(service, name=f"n{number}", steps=1).id for number in range(5)]
    service.database.move(planted[0], JobState.SUCCEEDED, "done")
    seen, page = [], ""
    while True:
        told = ask(service, f"/api/jobs?page_size=2&page={page}").json
        seen += told["jobs"]
        page = told["next_page"]
        if not page:
            break
    listed = service.caller(TENANTS["ann"]).call("List", pb.ListRequest()).jobs
    assert [job["id"] for job in seen] == [job.id for job in listed] == list(reversed(planted))
    assert [pb.JobState.Value(job["state"].upper()) for job in seen] == [job.state for job in listed]
    assert [job["submitted_at"] for job in seen] == [job.submitted_at for job in listed]
    some = ask(service, "/api/jobs?state=succeeded&state=failed").json["jobs"]
    assert [job["id"] for job in some] == [planted[0]]
    assert [job["id"] for job in ask(service, "/api/jobs?name=n3").json["jobs"]] == [planted[3]]


def test_one_job_is_told_from_where_the_asker_was(service: Service) -> None:
    planted = plant(service)
    told = ask(service, f"/api/jobs/{planted.id[:6]}").json
    assert told["job"]["id"] == planted.id
    assert [change["state"] for change in told["changes"]] == ["queued", "starting", "running"]
    assert told["progress"]["step"] == 60
    assert [shard["busy_cores"] for shard in told["shards"]] == [0.5, 1.5]
    service.database.move(planted.id, JobState.FAILED, "enough")
    later = ask(service, f"/api/jobs/{planted.id}?changes_seen={told['changes_seen']}").json
    assert [(change["state"], change["reason"]) for change in later["changes"]] == [("failed", "enough")]
    spec = ask(service, f"/api/jobs/{planted.id}/spec").json
    assert spec == json.loads(service.caller(TENANTS["ann"]).call("Get", pb.JobRequest(id=planted.id)).spec)


def test_metrics_go_on_after_the_last_step_that_was_seen(service: Service) -> None:
    planted = plant(service)
    first = ask(service, f"/api/jobs/{planted.id}/metrics?limit=50").json
    assert first["more"] is True
    assert [record["step"] for record in first["records"]] == list(range(1, 51))
    planted.train(5)
    rest = ask(service, f"/api/jobs/{planted.id}/metrics?after_step=50").json
    assert rest["more"] is False
    lines = planted.run.metrics_path.read_text().splitlines()
    assert first["records"] + rest["records"] == [json.loads(line) for line in lines]


def test_events_and_cuts_are_told(service: Service) -> None:
    planted = plant(service)
    (event,) = ask(service, f"/api/jobs/{planted.id}/events").json["events"]
    (kept,) = read_events(planted.run.events_path)
    assert event == kept.model_dump()
    assert ask(service, f"/api/jobs/{planted.id}/events?since={event['time']!r}").json["events"] == []
    time.sleep(0.01)
    planted.tell_restart()
    assert len(ask(service, f"/api/jobs/{planted.id}/events?since={event['time']!r}").json["events"]) == 1
    assert ask(service, f"/api/jobs/{planted.id}/cuts").json == {"cuts": []}
    cluster = ask(service, "/api/cluster").json
    assert (cluster["hosts"][0]["cpus"], cluster["jobs_active"]) == (64, 1)


def test_the_map_is_the_one_in_the_folder(service: Service) -> None:
    planted = plant(service)
    path = f"/api/jobs/{planted.id}/map"
    told = ask(service, path)
    np.testing.assert_array_equal(np.frombuffer(told.body, "<f4").reshape(32, 32), slots(32))
    figures = {name: told.headers[f"map-{name}"] for name in ("side", "sub-keys", "since", "step")}
    assert figures == {"side": "32", "sub-keys": "32", "since": "0", "step": "60"}
    same = ask(service, path, headers=[("If-None-Match", told.headers["etag"])])
    assert (same.status, same.body) == (304, b"")
    planted.draw(slots(32, seed=1))
    changed = ask(service, path, headers=[("If-None-Match", told.headers["etag"])])
    np.testing.assert_array_equal(np.frombuffer(changed.body, "<f4").reshape(32, 32), slots(32, seed=1))
    held_out = ask(service, f"{path}?of=held-out")
    np.testing.assert_allclose(np.frombuffer(held_out.body, "<f4").reshape(32, 32), slots(32) / 7, rtol=1e-6)


def test_a_map_that_is_larger_than_asked_is_made_coarser(service: Service) -> None:
    planted = plant(service)
    counts = slots(300)
    planted.draw(counts)
    told = ask(service, f"/api/jobs/{planted.id}/map?side=64")
    assert (told.headers["map-side"], told.headers["map-sub-keys"]) == ("64", "300")
    expected = np.zeros((64, 64))
    for first in range(300):
        for second in range(300):
            expected[first * 64 // 300, second * 64 // 300] += counts[first, second]
    np.testing.assert_array_equal(np.frombuffer(told.body, "<f4").reshape(64, 64), expected)
    np.testing.assert_array_equal(coarsened(expected, 64), expected)


def test_a_map_that_is_not_there_yet_is_said_so(service: Service) -> None:
    planted = plant(service)
    planted.run.training_map_path.unlink()
    planted.run.access_map_path.unlink()
    for of, word in (("training", "with its first steps"), ("held-out", "with the end of the job")):
        told = ask(service, f"/api/jobs/{planted.id}/map?of={of}")
        assert told.status == 404
        assert word in told.error


def test_asking_is_kept_and_refused_as_over_grpc(service: Service) -> None:
    planted = plant(service)
    path = f"/api/jobs/{planted.id}"
    paused = ask(service, f"{path}/pause", method="POST", body=b'{"reason": "a better one runs"}')
    assert (paused.json["job"]["state"], paused.json["job"]["wanted"]) == ("pausing", "pause")
    assert ask(service, f"{path}/resume", method="POST").status == 409
    assert ask(service, f"{path}/cancel", method="POST").json["job"]["wanted"] == "cancel"
    refused = ask(service, f"{path}/pause", method="POST", body=b"{}")
    assert refused.status == 409
    assert "is being cancelled and can't be paused" in refused.error
    long = ask(service, f"{path}/cancel", method="POST", body=json.dumps({"reason": "r" * 501}).encode())
    assert long.status == 400
    assert "has 501 letters" in long.error


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/api/jobs?state=asleep", "state"),
        ("/api/jobs?page_size=0", "page_size"),
        ("/api/jobs?page_size=1001", "page_size"),
        ("/api/jobs?page=x", "page token"),
        ("/api/jobs?color=red", "color"),
        ("/api/jobs/{id}?changes_seen=-1", "changes_seen"),
        ("/api/jobs/{id}/metrics?limit=5001", "limit"),
        ("/api/jobs/{id}/metrics?after_step=1e30", "after_step"),
        ("/api/jobs/{id}/events?since=nan", "since"),
        ("/api/jobs/{id}/map?side=2048", "side"),
        ("/api/jobs/{id}/map?of=../../jobs.sqlite", "of"),
    ],
)
def test_a_mistake_is_said_in_a_sentence(service: Service, path: str, word: str) -> None:
    answer = ask(service, path.format(id=plant(service, steps=1).id))
    assert answer.status == 400
    assert word in answer.error
