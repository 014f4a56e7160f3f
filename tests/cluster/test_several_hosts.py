"""A job of a service on three hosts, each with an address of its own: it ends with the bytes of one process, also when one of
the hosts dies on the way."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from memory_store.cuts import complete_cuts
from service.client import Client
from service.jobs.states import ENDED, JobState
from tests.cluster.ray_hosts import HEAD, RayHosts, until
from tests.small_job import dense_weights, small_corpus, small_job, table_content
from workers.job_spec import JobSpec
from workers.report import read_records
from workers.run_folder import RunFolder
from workers.trainer_group import train

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]
HOSTS = 3
LONG = {"train__steps": 150, "train__cut_every": 30, "store__lookup": "fetch"}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pkm-") as found:  # a short path: Ray's sockets are in it
        yield Path(found)


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Path:
    shared = folder / "service" / "data" / "shared"
    shared.mkdir(parents=True)
    return small_corpus(shared)


@pytest.fixture(scope="module")
def hosts(folder: Path, corpus: Path) -> Iterator[RayHosts]:
    with RayHosts(folder, HOSTS) as found:
        yield found


@pytest.fixture(scope="module")
def straight(folder: Path, corpus: Path) -> RunFolder:
    """The same job in one process."""
    run = RunFolder(folder / "straight")
    job = small_job(corpus, **LONG)
    run.create(job)
    train(job, run, on_progress=lambda _: None)
    return run


@pytest.fixture(scope="module")
def spread(corpus: Path) -> JobSpec:
    return small_job(corpus, store__carrier="auto", **LONG)


def steps(client: Client, job: str) -> int:
    return sum(1 for _ in client.metrics(job))


def hosts_of(hosts: RayHosts, kind: str) -> list[int]:
    """On which hosts processes of a kind run."""
    return [host for host in range(HOSTS) for title in hosts.titles(host) if title.startswith(f"ray::{kind}")]


def assert_same_end(client: Client, job: str, straight: RunFolder) -> None:
    run = RunFolder(client.get(job).run)
    cuts = [complete_cuts(folder.cuts_path)[-1] for folder in (run, straight)]
    assert table_content(cuts[0]) == table_content(cuts[1])
    assert dense_weights(cuts[0]) == dense_weights(cuts[1])
    losses = [
        [(line.step, line.loss) for line in read_records(folder.metrics_path)] for folder in (run, straight)
    ]
    assert losses[0] == losses[1]


def wait_for_end(client: Client, job: str) -> None:
    until(lambda: client.get(job).job.state in ENDED, lambda: b"".join(client.logs(job, tail=60)).decode())
    found = client.get(job)
    assert found.job.state == JobState.SUCCEEDED, found


def test_shards_and_trainer_on_three_hosts_end_with_the_bytes_of_one_process(
    hosts: RayHosts, spread: JobSpec, straight: RunFolder
) -> None:
    with hosts.client() as client:
        job = client.submit(spread).id
        until(lambda: steps(client, job) >= 5, lambda: b"".join(client.logs(job, tail=60)).decode())
        shards, trainers = hosts_of(hosts, "ShardActor"), hosts_of(hosts, "TrainerActor")
        assert sorted([*shards, *trainers]) == [0, 1, 2]
        wait_for_end(client, job)
        assert_same_end(client, job, straight)


def test_a_host_that_dies_changes_no_byte(hosts: RayHosts, spread: JobSpec, straight: RunFolder) -> None:
    with hosts.client() as client:
        job = client.submit(spread).id
        until(lambda: steps(client, job) >= 40, lambda: b"".join(client.logs(job, tail=60)).decode())
        victim = next(host for host in hosts_of(hosts, "ShardActor") if host != HEAD)
        hosts.kill(victim)
        wait_for_end(client, job)
        assert steps(client, job) == LONG["train__steps"]
        assert hosts.titles(victim) == []
        assert JobState.RECOVERING in [change.state for change in client.get(job).changes]
        assert_same_end(client, job, straight)
