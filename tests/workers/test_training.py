"""Training end to end in this process: what resuming, resharding and accumulation must not change."""

from __future__ import annotations

from pathlib import Path

import pytest

import workers.training
from memory_store.cuts import complete_cuts
from memory_store.errors import CutError, UsageError
from tests.small_job import dense_weights, small_job, table_content
from workers.job_spec import JobSpec
from workers.report import Report, read_records
from workers.run_folder import RunFolder
from workers.trainer_group import train


class PlantedError(Exception):
    """The stop that the tests plant."""


def run_job(job: JobSpec, folder: Path, *, resume: bool = False) -> Report:
    run = RunFolder(folder)
    if not resume:
        run.create(job)
    return train(job, run, resume=resume, on_progress=lambda _: None)


def run_interrupted(job: JobSpec, folder: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a job until step `at` has begun and the last cut is written, then fail."""
    original = workers.training.Trainer.train_step

    def failing(trainer: workers.training.Trainer) -> workers.training.StepRecord:
        if trainer.step == at:
            trainer.cuts.finish()
            raise PlantedError
        return original(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(workers.training.Trainer, "train_step", failing)
        with pytest.raises(PlantedError):
            run_job(job, folder)


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(record.step, record.loss) for record in read_records(folder / "metrics.jsonl")]


def last_cut(folder: Path) -> Path:
    return complete_cuts(folder / "cuts")[-1]


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run_job(small_job(corpus), folder)
    return folder


def test_losses_fall_and_report_is_complete(undisturbed: Path, corpus: Path) -> None:
    logged = losses(undisturbed)
    assert [step for step, _ in logged] == list(range(1, 61))
    assert logged[-1][1] < logged[0][1] - 0.5
    report = Report.model_validate_json((undisturbed / "report.json").read_text())
    assert report.memory_usage is not None
    assert 0 < report.memory_usage <= 1
    assert report.kl_to_uniform is not None
    assert report.kl_to_uniform > 0
    assert report.test_perplexity < 512
    assert all(Path(plot).stat().st_size > 5000 for plot in report.plots)
    assert len(report.plots) == 2
    records = read_records(undisturbed / "metrics.jsonl")
    assert [record.step for record in records if record.validation_perplexity is not None] == [20, 40]


def test_stop_and_resume_gives_the_same_bytes(
    corpus: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(corpus)
    run_interrupted(job, tmp_path / "run", 37, monkeypatch)
    assert losses(tmp_path / "run")[-1][0] == 37  # steps 31 to 37 were logged and must be dropped
    run_job(job, tmp_path / "run", resume=True)
    assert losses(tmp_path / "run") == losses(undisturbed)
    assert dense_weights(last_cut(tmp_path / "run")) == dense_weights(last_cut(undisturbed))
    assert table_content(last_cut(tmp_path / "run")) == table_content(last_cut(undisturbed))


def test_resume_on_another_number_of_shards(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(corpus, store__lookup="fetch", train__cut_every=10, train__keep_cuts=9)
    run_job(job, tmp_path / "two")
    run_interrupted(job, tmp_path / "moved", 30, monkeypatch)
    for shards, steps in ((3, 45), (1, 60)):
        moved = small_job(
            corpus, store__lookup="fetch", store__shards=shards, train__cut_every=10, train__keep_cuts=9
        )
        if steps < 60:
            original = workers.training.Trainer.train_step
            with monkeypatch.context() as patch:
                patch.setattr(
                    workers.training.Trainer,
                    "train_step",
                    lambda trainer, stop=steps, step=original: _stop_at(trainer, stop, step),
                )
                with pytest.raises(PlantedError):
                    run_job(moved, tmp_path / "moved", resume=True)
        else:
            run_job(moved, tmp_path / "moved", resume=True)
    for theirs, ours in zip(
        complete_cuts(tmp_path / "two" / "cuts"), complete_cuts(tmp_path / "moved" / "cuts"), strict=True
    ):
        assert table_content(theirs) == table_content(ours), theirs.name
        assert dense_weights(theirs) == dense_weights(ours), theirs.name
    assert losses(tmp_path / "two") == losses(tmp_path / "moved")


def _stop_at(trainer: workers.training.Trainer, stop: int, step: object) -> workers.training.StepRecord:
    if trainer.step == stop:
        raise PlantedError
    assert callable(step)
    result = step(trainer)
    assert isinstance(result, workers.training.StepRecord)
    return result


def test_accumulation_changes_nothing_but_rounding(corpus: Path, tmp_path: Path) -> None:
    # Without query batch norm, whose statistics are those of the micro-batch.
    settings = {"memory__query_norm": "layer", "train__steps": 10, "train__evaluate_every": 10}
    run_job(small_job(corpus, **settings), tmp_path / "whole")
    run_job(small_job(corpus, **settings, train__gradient_accumulation=4), tmp_path / "parts")
    for (step, whole), (_, parts) in zip(losses(tmp_path / "whole"), losses(tmp_path / "parts"), strict=True):
        assert parts == pytest.approx(whole, rel=2e-4), step


def test_dense_twins_train_without_a_shard(corpus: Path, tmp_path: Path) -> None:
    job = small_job(corpus, train__steps=4)
    for kind, layers in (("dense", 2), ("deep", 4)):
        twin = job.twin(kind)
        report = run_job(twin, tmp_path / kind)
        assert twin.model.layers == layers
        assert (report.shards, report.table_rows, report.memory_usage) == (0, 0, None)


def test_damaged_cut_is_refused_and_left_alone(corpus: Path, tmp_path: Path) -> None:
    job = small_job(corpus, train__steps=4)
    run_job(job, tmp_path / "run")
    victim = next(last_cut(tmp_path / "run").glob("*.arrow"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    with pytest.raises(CutError, match=victim.name):
        run_job(job, tmp_path / "run", resume=True)
    assert victim.read_bytes() == content


def test_a_run_is_never_written_over(corpus: Path, undisturbed: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    with pytest.raises(UsageError, match="--resume"):
        run_job(small_job(corpus), undisturbed)
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")} == before


def test_table_beyond_this_machine_is_refused(corpus: Path, tmp_path: Path) -> None:
    job = small_job(
        corpus, memory__sub_keys=20_000, memory__k=8, store__shards=8, store__shard_memory_gib=1000.0
    )
    with pytest.raises(UsageError, match="GiB"):
        run_job(job, tmp_path / "run")
