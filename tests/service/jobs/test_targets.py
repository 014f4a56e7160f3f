"""The targets of a service: what the processes of its running jobs have told, as it is now, behind TLS and the token."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from memory_store.metric_registry import new_registry
from service.jobs.database import JobDatabase, NewJob
from service.jobs.demand import demand_of
from service.jobs.folder import ServiceFolder
from service.jobs.monitoring import scrape_digest
from service.jobs.states import JobState
from service.jobs.targets import Targets
from tests.small_job import small_job
from workers.job_certificates import make_certificates
from workers.job_scrape import job_scrape


def read(address: str, folder: ServiceFolder, token: str) -> str:
    context = ssl.create_default_context(cafile=str(folder.scrape_authorities))
    context.check_hostname = False  # urllib can't ask for another name than the address
    request = urllib.request.Request(
        f"https://{address}/metrics", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=60, context=context) as answer:
        return str(answer.read().decode())


def test_targets_follow_the_processes_of_running_jobs(tmp_path: Path) -> None:
    folder = ServiceFolder(tmp_path / "service")
    database = JobDatabase(folder.database)
    spec = small_job(tmp_path / "corpus")
    job = database.submit(NewJob("ann", "request", spec.name, spec.model_dump_json(), demand_of(spec)))
    targets = Targets(database, folder, make_certificates().metrics.authority)
    assert targets.groups() == []
    database.move(job.id, JobState.STARTING, "its turn")
    run = folder.run_of(job)
    run.create(spec)
    run.save_scrape_digest(scrape_digest(folder))
    scrape = job_scrape(run, make_certificates().metrics)
    first = scrape.serve(new_registry(), "127.0.0.1", "shard", 1)
    (group,) = targets.groups()
    assert group.model_dump(mode="json") == {
        "targets": [first.address],
        "labels": {
            "job_id": job.id,
            "tenant": "ann",
            "process": "shard",
            "index": "1",
            "__scheme__": "https",
        },
    }
    token = folder.scrape_token.read_text().strip()
    assert "process_cpu_seconds_total" in read(first.address, folder, token)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        read(first.address, folder, "another")
    first.close()
    second = scrape.serve(new_registry(), "127.0.0.1", "shard", 1)  # as one that was started again
    (run.scrape_path / "trainer-0.json").write_text("not what it should be")
    assert [group.targets for group in targets.groups()] == [(second.address,)]
    assert folder.scrape_token.stat().st_mode & 0o077 == 0
    assert token not in "".join(path.read_text() for path in run.scrape_path.iterdir())
    second.close()
    database.move(job.id, JobState.FAILED, "the test is over")
    told: list[str] = []
    page = targets.page({}, lambda status, headers: told.append(status))
    assert (told, json.loads(b"".join(page))) == (["200 OK"], [])
    database.close()
