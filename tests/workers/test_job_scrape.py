"""The targets of a service while its job's processes change: a killed shard is found again at its new port."""

from __future__ import annotations

import os
import signal
import ssl
import time
import urllib.request
from pathlib import Path

import pytest
import ray
from ray.util.placement_group import remove_placement_group

from memory_store.actor import start_shards
from service.jobs.database import JobDatabase, NewJob
from service.jobs.demand import demand_of
from service.jobs.folder import ServiceFolder
from service.jobs.monitoring import scrape_digest
from service.jobs.states import JobState
from service.jobs.targets import Targets
from tests.small_job import small_job
from workers.job_certificates import make_certificates
from workers.job_scrape import job_scrape
from workers.ray_cluster import place

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.slow, pytest.mark.timeout(600)]
TIMEOUT_S = 120.0


def read(address: str, folder: ServiceFolder) -> str:
    """The metrics at an address, as a Prometheus of the service reads them: over TLS, with its token."""
    context = ssl.create_default_context(cafile=str(folder.scrape_authorities))
    context.check_hostname = False  # urllib can't ask for another name than the address
    token = folder.scrape_token.read_text().strip()
    request = urllib.request.Request(
        f"https://{address}/metrics", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=60, context=context) as answer:
        return str(answer.read().decode())


def test_a_killed_shard_is_found_at_its_new_port(corpus: Path, tmp_path: Path) -> None:
    folder = ServiceFolder(tmp_path / "service")
    database = JobDatabase(folder.database)
    spec = small_job(corpus, store__carrier="auto")
    job = database.submit(NewJob("ann", "request", spec.name, spec.model_dump_json(), demand_of(spec)))
    targets = Targets(database, folder, make_certificates().metrics.authority)
    assert targets.groups() == []
    database.move(job.id, JobState.STARTING, "its turn")
    run = folder.run_of(job)
    run.create(spec)
    run.save_scrape_digest(scrape_digest(folder))
    made = make_certificates()
    scrape = job_scrape(run, made.metrics)
    where = place(spec, "pkm", gpus=False, timeout_s=TIMEOUT_S, given_up=lambda: False)
    assert where is not None
    shards = start_shards(
        spec.name, spec.tables(), 2, where, credentials=(made.shards, made.trainers), scrape=scrape
    )
    try:
        before = {group.labels["index"]: group for group in targets.groups()}
        assert {index: dict(group.labels) for index, group in before.items()} == {
            index: {
                "job_id": job.id, "tenant": "ann", "process": "shard", "index": index, "__scheme__": "https",
            }
            for index in ("0", "1")
        }  # fmt: skip
        for group in before.values():
            assert "pkm_shard_version 0.0" in read(*group.targets, folder)
        os.kill(ray.get(shards.actors[0].process_id.remote()), signal.SIGKILL)
        deadline = time.monotonic() + TIMEOUT_S
        while (after := {group.labels["index"]: group for group in targets.groups()})["0"] == before["0"]:
            assert time.monotonic() < deadline, "the shard did not come back"
            time.sleep(0.2)
        assert after["1"] == before["1"]
        assert "pkm_shard_version 0.0" in read(*after["0"].targets, folder)
    finally:
        shards.stop()
        remove_placement_group(where)
    database.move(job.id, JobState.FAILED, "the test is over")
    assert targets.groups() == []
    database.close()
