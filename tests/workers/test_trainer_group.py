"""A job on real Ray actors: the same bytes as in one process, and recovery when a process is killed."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import ray

from memory_store.actor import NAMESPACE
from memory_store.cuts import complete_cuts
from memory_store.errors import NonFiniteGradientError, UsageError
from tests.running_jobs import losses, processes_named, wait_for_steps
from tests.small_job import dense_weights, small_job, table_content
from workers.events import count_events
from workers.job_spec import JobSpec
from workers.report import Progress, Report
from workers.run_folder import RunFolder
from workers.trainer_group import train

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(600)]


def run_job(job: JobSpec, folder: Path) -> Report:
    run = RunFolder(folder)
    run.create(job)
    return train(job, run, on_progress=lambda _: None)


def last_cut(folder: Path) -> Path:
    return complete_cuts(folder / "cuts")[-1]


@pytest.mark.parametrize(
    ("lookup", "here"),
    [
        ("fetch", {"store__lookup": "fetch"}),
        ("auto", {"store__lookup": "pool", "store__shards": 1}),  # rows read in place add up as in one shard
    ],
)
def test_shards_in_actors_give_the_bytes_of_one_process(
    corpus: Path, tmp_path: Path, lookup: str, here: dict[str, Any]
) -> None:
    settings = {"train__steps": 20, "train__cut_every": 10}
    alone = run_job(small_job(corpus, **settings, **here), tmp_path / "alone")
    actors = run_job(
        small_job(corpus, **settings, store__carrier="auto", store__lookup=lookup), tmp_path / "actors"
    )
    assert table_content(last_cut(tmp_path / "alone")) == table_content(last_cut(tmp_path / "actors"))
    assert dense_weights(last_cut(tmp_path / "alone")) == dense_weights(last_cut(tmp_path / "actors"))
    assert losses(tmp_path / "alone") == losses(tmp_path / "actors")
    assert actors.restarts == 0
    assert actors.test_perplexity == pytest.approx(alone.test_perplexity, rel=1e-6)


def test_job_that_no_host_can_hold_is_refused_at_once(corpus: Path, tmp_path: Path) -> None:
    job = small_job(corpus, store__carrier="auto", store__shards=40, train__trainers=8)
    with pytest.raises(UsageError, match=r"48 processes .* the Ray cluster has \d+ CPUs"):
        run_job(job, tmp_path / "run")


@pytest.mark.slow
def test_killed_shard_and_killed_trainer_lead_to_the_same_end(corpus: Path, tmp_path: Path) -> None:
    settings = {"train__steps": 200, "train__cut_every": 20, "store__lookup": "fetch"}
    run_job(small_job(corpus, **settings), tmp_path / "undisturbed")
    killed: list[int] = []

    def kill(process: int) -> None:
        os.kill(process, signal.SIGKILL)
        killed.append(process)

    def kill_when_training() -> None:
        wait_for_steps(tmp_path / "killed", 45)
        shard = ray.get_actor("small-shard-1", namespace=NAMESPACE)
        kill(ray.get(shard.process_id.remote()))
        wait_for_steps(tmp_path / "killed", 120)
        (trainer,) = processes_named("TrainerActor")
        kill(trainer)

    thread = threading.Thread(target=kill_when_training)
    thread.start()
    report = run_job(small_job(corpus, **settings, store__carrier="auto"), tmp_path / "killed")
    thread.join()
    assert len(killed) == 2
    assert report.restarts >= 2
    assert table_content(last_cut(tmp_path / "killed")) == table_content(last_cut(tmp_path / "undisturbed"))
    assert dense_weights(last_cut(tmp_path / "killed")) == dense_weights(last_cut(tmp_path / "undisturbed"))
    assert losses(tmp_path / "killed") == losses(tmp_path / "undisturbed")


@pytest.mark.slow
def test_with_a_log_trainers_wait_for_a_killed_shard_and_go_on(corpus: Path, tmp_path: Path) -> None:
    settings = {"train__steps": 120, "train__cut_every": 50, "store__lookup": "fetch"}
    run_job(small_job(corpus, **settings), tmp_path / "undisturbed")
    killed = []

    def kill_when_training() -> None:
        for shard, steps in enumerate([20, 70]):
            wait_for_steps(tmp_path / "killed", steps)
            actor = ray.get_actor(f"small-shard-{shard}", namespace=NAMESPACE)
            os.kill(ray.get(actor.process_id.remote()), signal.SIGKILL)
            killed.append(shard)

    thread = threading.Thread(target=kill_when_training)
    thread.start()
    logged = small_job(corpus, **settings, store__carrier="auto", store__durability="log")
    report = run_job(logged, tmp_path / "killed")
    thread.join()
    assert killed == [0, 1]
    assert report.restarts == 0
    assert table_content(last_cut(tmp_path / "killed")) == table_content(last_cut(tmp_path / "undisturbed"))
    assert dense_weights(last_cut(tmp_path / "killed")) == dense_weights(last_cut(tmp_path / "undisturbed"))
    assert losses(tmp_path / "killed") == losses(tmp_path / "undisturbed")


@pytest.mark.parametrize("ahead", [{}, {"memory__layers": [2], "memory__look_ahead": 1}])
def test_two_trainers_repeat_and_match_one(corpus: Path, tmp_path: Path, ahead: dict[str, Any]) -> None:
    settings = {"train__steps": 10, "train__evaluate_every": 10, "store__lookup": "fetch", **ahead}
    run_job(small_job(corpus, **settings), tmp_path / "one")
    told: list[Progress] = []
    for name in ("two", "again"):
        run = RunFolder(tmp_path / name)
        job = small_job(corpus, **settings, store__carrier="auto", train__trainers=2)
        run.create(job)
        train(job, run, on_progress=told.append)
    for (step, one), (_, two) in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=5e-4), step
    assert losses(tmp_path / "two") == losses(tmp_path / "again")
    assert table_content(last_cut(tmp_path / "two")) == table_content(last_cut(tmp_path / "again"))
    assert told[0].phase == "starting"


def test_what_ends_one_trainer_for_good_ends_all(corpus: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    settings = {"train__trainers": 2, "store__carrier": "auto"}
    with pytest.raises(NonFiniteGradientError, match="Lower the learning rate"):
        run_job(small_job(corpus, **settings, train__lr=1e30), run.path)
    assert count_events(run.events_path, "restart", 0.0) == 0
