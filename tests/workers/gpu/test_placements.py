"""Whole jobs with their tables in shards, on the device, or in both."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from memory_store.cuts import complete_cuts, cut_folder
from memory_store.errors import UsageError
from tests.small_job import dense_weights, small_job, table_content
from workers.job_spec import JobSpec
from workers.preflight import check_cluster_job, check_device, check_job
from workers.report import Report, read_records
from workers.run_folder import RunFolder
from workers.trained_model import load_trained_model
from workers.trainer_group import train

pytestmark = pytest.mark.timeout(300)

PLACEMENTS: dict[str, dict[str, Any]] = {
    "host": {},
    "cached": {"memory__placement": "cached", "memory__cached_rows": 200},
    "gpu": {"memory__placement": "gpu"},
}


def job_of(corpus: Path, placement: str, **changes: Any) -> JobSpec:
    settings: dict[str, Any] = {
        "train__steps": 24,
        "train__cut_every": 12,
        "train__evaluate_every": 12,
        "store__shards": 1,
        "store__lookup": "fetch",
    }
    return small_job(corpus, **settings | PLACEMENTS[placement] | changes)


def run_job(job: JobSpec, folder: Path, *, resume: bool = False) -> Report:
    run = RunFolder(folder)
    if resume:
        run.save_job(job)
    else:
        run.create(job)
    report = train(job, run, resume=resume, on_progress=lambda _: None)
    assert report is not None
    return report


@pytest.fixture(scope="module")
def on_host(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("host") / "run"
    run_job(job_of(corpus, "host"), folder)
    return folder


def bytes_of(folder: Path) -> tuple[Any, ...]:
    cut = complete_cuts(folder / "cuts")[-1]
    losses = [record.loss for record in read_records(folder / "metrics.jsonl")]
    return cut.name, table_content(cut), dense_weights(cut), losses


def test_a_job_with_copies_ends_with_the_same_bytes(corpus: Path, on_host: Path, tmp_path: Path) -> None:
    report = run_job(job_of(corpus, "cached", store__shards=2), tmp_path / "run")
    assert bytes_of(tmp_path / "run") == bytes_of(on_host)
    assert (
        report.test_perplexity
        == Report.model_validate_json((on_host / "report.json").read_text()).test_perplexity
    )
    told = [record.cache_hit_rate for record in read_records(tmp_path / "run" / "metrics.jsonl")]
    assert told[0] == 0
    assert report.cache_hit_rate == pytest.approx(sum(told) / len(told))
    assert 0.1 < report.cache_hit_rate < 1


@pytest.mark.slow
@pytest.mark.parametrize("option", [{"memory__slots": "experts"}, {"memory__value_expansion": 2}])
def test_whatever_a_slot_holds_copies_change_no_byte(
    option: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    settings = {"train__steps": 24, **option}
    for placement in ("host", "cached"):
        run_job(job_of(corpus, placement, **settings), tmp_path / placement)
    assert bytes_of(tmp_path / "cached") == bytes_of(tmp_path / "host")


def test_a_job_on_the_device_learns_as_one_in_shards(corpus: Path, on_host: Path, tmp_path: Path) -> None:
    report = run_job(job_of(corpus, "gpu"), tmp_path / "run")
    expected = Report.model_validate_json((on_host / "report.json").read_text())
    assert report.test_perplexity == pytest.approx(expected.test_perplexity, rel=2e-3)
    assert report.memory_usage == pytest.approx(expected.memory_usage, rel=0.02)
    assert report.cache_hit_rate is None
    # What evaluates, generates and exports reads the cut, with no device.
    assert load_trained_model(RunFolder(tmp_path / "run")).step == 24


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["cached", "gpu"])
def test_a_job_resumed_from_its_cut_ends_with_the_same_bytes(
    corpus: Path, tmp_path: Path, placement: str
) -> None:
    folder = tmp_path / "run"
    run_job(job_of(corpus, placement), folder)
    expected = bytes_of(folder)
    remove_last_cut(folder)
    run_job(job_of(corpus, placement), folder, resume=True)
    assert bytes_of(folder) == expected


@pytest.mark.slow
def test_a_job_goes_on_with_another_placement(corpus: Path, tmp_path: Path) -> None:
    """As one that goes on from the same cuts in shards: the learning rates are those of a job's own number of steps."""

    def in_parts(folder: Path, placements: tuple[str, ...]) -> Report:
        for part, placement in enumerate(placements):
            job = job_of(corpus, placement, train__steps=12 + 4 * part)
            report = run_job(job, folder, resume=part > 0)
        return report

    expected = in_parts(tmp_path / "host", ("host", "host", "host", "host"))
    report = in_parts(tmp_path / "any", ("gpu", "cached", "gpu", "host"))
    assert report.test_perplexity == pytest.approx(expected.test_perplexity, rel=5e-3)


def remove_last_cut(folder: Path) -> None:
    cut = cut_folder(folder / "cuts", 24)
    for path in cut.iterdir():
        path.unlink()
    cut.rmdir()


@pytest.mark.parametrize(
    ("placement", "changes", "why"),
    [
        (
            "gpu",
            {"store__carrier": "auto"},
            "carrier auto with 1 shards can't serve it; use carrier in_process",
        ),
        ("gpu", {"store__shards": 2}, "carrier in_process with 2 shards can't serve it"),
        ("host", {"train__trainers": 2}, "in_process serves one trainer, not 2"),
        ("gpu", {"train__trainers": 2, "store__carrier": "grpc"}, "can't serve it; use carrier in_process"),
        ("cached", {"store__lookup": "pool"}, "cached fetches rows, and pool returns sums of them"),
        (
            "cached",
            {"memory__revive_dead_after": 9},
            "rows are re-seeded in shards alone; use placement host",
        ),
        (
            "gpu",
            {"memory__sub_keys": 4096},
            r"a trainer needs .* GiB and may take .* over 1 trainers; use more trainers",
        ),
        ("gpu", {"train__only_rows": 9}, "only rows in shards are updated alone; use memory.placement host"),
    ],
)
def test_what_can_not_be_is_refused(corpus: Path, placement: str, changes: dict[str, Any], why: str) -> None:
    settings = {"store__shards": 1, **PLACEMENTS[placement], **changes}
    with pytest.raises(ValidationError, match=why):
        small_job(corpus, **settings)


def test_what_the_device_has_no_room_for_is_refused(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(corpus, "gpu")
    assert job.device_bytes() == job.table_bytes()
    assert job_of(corpus, "gpu", train__trainers=2).device_bytes() == job.table_bytes() // 2
    assert job_of(corpus, "cached").device_bytes() == 200 * 32 * 4
    assert job_of(corpus, "cached", memory__cached_rows=10**6).device_bytes() == 32 * 32 * 32 * 4
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (0, job.device_bytes() - 1))
    check_job(job_of(corpus, "host"))
    check_job(job_of(corpus, "cached"))
    for check in (check_job, partial(check_device, device=torch.device("cuda"))):  # here, or in a trainer
        with pytest.raises(UsageError, match="use placement host, or cached with fewer cached_rows"):
            check(job)


def test_on_a_cluster_bfloat16_asks_for_gpus_by_name(corpus: Path) -> None:
    check_cluster_job(job_of(corpus, "host"))
    check_cluster_job(job_of(corpus, "host", train__precision="bfloat16", train__device="cuda"))
    with pytest.raises(UsageError, match=r"set train\.device cuda, or precision float32"):
        check_cluster_job(job_of(corpus, "host", train__precision="bfloat16", train__device="auto"))
