"""Whole jobs whose tables lie on the devices of two trainers."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from memory_store.cuts import complete_cuts
from tests.running_jobs import losses, processes_named, wait_for_steps
from tests.small_job import dense_weights, small_job, table_content
from workers.job_spec import JobSpec
from workers.report import Report
from workers.run_folder import RunFolder
from workers.trainer_group import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.timeout(600),
]


def shared_job(corpus: Path, **changes: Any) -> JobSpec:
    settings: dict[str, Any] = {
        "memory__placement": "gpu",
        "store__shards": 1,
        "train__trainers": 2,
        "train__steps": 24,
        "train__cut_every": 6,
        "train__evaluate_every": 12,
    }
    return small_job(corpus, **settings | changes)


def run_job(job: JobSpec, folder: Path, *, resume: bool = False, cluster: str | None = None) -> Report:
    run = RunFolder(folder)
    if resume:
        run.save_job(job)
    else:
        run.create(job)
    report = train(job, run, resume=resume, cluster=cluster, on_progress=lambda _: None)
    assert report is not None
    return report


def assert_near(found: list[tuple[int, float]], expected: list[tuple[int, float]], share: float) -> None:
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=share)


def test_they_learn_as_in_shards_and_go_on_there(corpus: Path, tmp_path: Path) -> None:
    on_host = {"memory__placement": "host", "store__carrier": "auto", "store__shards": 2}
    clipped = {"memory__values": {"lr": 0.01, "clip_norm": 0.5}}
    expected = run_job(shared_job(corpus, **clipped, **on_host), tmp_path / "host")
    report = run_job(shared_job(corpus, **clipped), tmp_path / "devices")
    assert report.test_perplexity == pytest.approx(expected.test_perplexity, rel=2e-3)
    assert report.memory_usage == pytest.approx(expected.memory_usage, rel=0.02)
    assert_near(losses(tmp_path / "devices"), losses(tmp_path / "host"), 2e-3)

    alone = {"train__trainers": 1, "train__steps": 30}  # on one device what two have left
    for name in ("host", "devices"):
        run_job(shared_job(corpus, **clipped, **alone), tmp_path / name, resume=True)
    assert_near(losses(tmp_path / "devices"), losses(tmp_path / "host"), 4e-3)


def test_a_killed_trainer_changes_nothing(corpus: Path, tmp_path: Path) -> None:
    # As on a cluster, where trainers reach each other's images over TLS alone.
    run_job(shared_job(corpus, train__steps=60), tmp_path / "undisturbed", cluster="undisturbed")
    killed: list[int] = []

    def kill_when_training() -> None:
        wait_for_steps(tmp_path / "killed", 20)
        killed.append(processes_named("TrainerActor")[-1])
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill_when_training)
    thread.start()
    run_job(shared_job(corpus, train__steps=60), tmp_path / "killed")
    thread.join()
    assert len(killed) == 1
    last = [complete_cuts(tmp_path / name / "cuts")[-1] for name in ("killed", "undisturbed")]
    assert table_content(last[0]) == table_content(last[1])
    assert dense_weights(last[0]) == dense_weights(last[1])
    assert losses(tmp_path / "killed") == losses(tmp_path / "undisturbed")
