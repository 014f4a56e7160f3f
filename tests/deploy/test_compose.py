"""A deployment by docker-compose.yml, in containers: a job on real text outlives the host of one of its shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from service.client import Client, JobUpdate
from service.jobs.errors import NotAllowedError
from service.jobs.states import JobState
from tests.deploy.deployment import Deployment, build_images, deployed, run, until
from tests.small_job import small_job

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1500)]

CORPUS = "/var/lib/pkm/data/shared/sotu"
STEPS, KILL_AFTER = 3000, 100
PROCESSES = {("driver", "0"), ("shard", "0"), ("shard", "1"), ("trainer", "0")}
SHARD_DOWN = 'ALERTS{alertname="PkmShardDown", alertstate="firing"}'


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    build_images()
    with deployed(tmp_path_factory.mktemp("deployment")) as found:
        source = "/opt/pkm/examples/data/sotu.parquet"
        prepare = ("data", "prepare", source, "--vocab-size", "1024", "--out", CORPUS)
        found.compose("run", "--rm", "--no-deps", "service", *prepare)
        yield found


def test_nobody_is_let_in_without_the_token_or_the_certificate(deployment: Deployment) -> None:
    authority = (deployment.secrets / "client" / "ca.pem").read_bytes()
    with (
        Client(f"localhost:{deployment.port}", "another", authority) as client,
        pytest.raises(NotAllowedError),
    ):
        list(client.list())
    with (
        grpc.insecure_channel(f"localhost:{deployment.port}") as channel,
        pytest.raises(grpc.FutureTimeoutError),
    ):
        grpc.channel_ready_future(channel).result(timeout=5)


def test_a_job_outlives_the_host_of_a_shard(deployment: Deployment) -> None:
    settings = {"store__carrier": "auto", "store__durability": "log", "train__cut_every": 200}
    job = small_job(Path(CORPUS), name="sotu", train__steps=STEPS, **settings)
    with deployment.client() as client:
        job_id = client.submit(job).id
        hosts = {
            deployment.address(container): container for container in deployment.containers("shard-host")
        }
        before = _until(client, job_id, lambda update: _step(update) > KILL_AFTER and len(update.shards) == 2)
        assert {shard.address.rpartition(":")[0] for shard in before.shards} == set(hosts)  # one on each
        until(lambda: _scraped(deployment) == PROCESSES, deployment.logs)
        assert _host_of_trainer(deployment) == deployment.address(deployment.containers("trainer-host")[0])
        assert not deployment.query(SHARD_DOWN)

        lost = before.shards[1].address.rpartition(":")[0]
        run("docker", "kill", hosts[lost])
        after = _until(client, job_id, lambda update: _step(update) > _step(before) + 2 * KILL_AFTER)
        assert {shard.address.rpartition(":")[0] for shard in after.shards} == set(hosts) - {lost}
        assert deployment.query(f"max_over_time({SHARD_DOWN}[30m])")
        until(lambda: not deployment.query(SHARD_DOWN) and _scraped(deployment) == PROCESSES, deployment.logs)

        done = _until(client, job_id, lambda update: update.job.ended_at is not None)
        assert done.job.state is JobState.SUCCEEDED, done.job.reason
        steps = [record.step for record in client.metrics(job_id)]
        assert sorted(set(steps)) == list(range(1, STEPS + 1))


def _until(client: Client, job_id: str, reached: Callable[[JobUpdate], bool]) -> JobUpdate:
    """The first update of a job that is so; AssertionError if the job ends without."""
    update = None
    for update in client.watch(job_id):
        if reached(update):
            return update
    log = b"".join(part for part in client.logs(job_id)) if update else b""
    raise AssertionError(f"{update}\n{log[-4000:]!r}")


def _scraped(deployment: Deployment) -> set[tuple[str, str]]:
    """The processes of jobs, with their numbers, that Prometheus reaches; none if one is not, or if the service is not."""
    found = deployment.query("up")
    if not all(float(series["value"][1]) for series in found):
        return set()
    jobs = [series["metric"] for series in found if series["metric"]["job"] == "pkm-jobs"]
    return {(labels["process"], labels["index"]) for labels in jobs} if len(jobs) < len(found) else set()


def _host_of_trainer(deployment: Deployment) -> str:
    targets = deployment.ask_prometheus("targets")["activeTargets"]
    (trainer,) = (target for target in targets if target["labels"].get("process") == "trainer")
    address: str = trainer["discoveredLabels"]["__address__"]
    return address.rpartition(":")[0]


def _step(update: JobUpdate) -> int:
    return update.progress.step if update.progress is not None else 0
