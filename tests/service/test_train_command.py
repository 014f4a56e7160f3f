"""`pkm train` round the training itself, which a stand-in replaces: run folders, progress, figures."""

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from memory_store.errors import UsageError
from service.cli import app
from workers.job_spec import JobSpec
from workers.report import Progress, Report
from workers.run_folder import RunFolder

JOB = """\
name: first
data: {corpus: corpus}
model: {layers: 2, dim: 32, heads: 2}
memory: {layers: [1], sub_keys: 64}
train: {steps: 10, batch_tokens: 512}
"""


class Training:
    """Stands in for workers.supervisor.train: notes its calls and does as it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[JobSpec, Path, bool]] = []
        self.error: BaseException | None = None
        self.unfit: UsageError | None = None

    def check(self, job: JobSpec) -> None:
        """Stands in for workers.preflight.check_job."""
        if self.unfit:
            raise self.unfit

    def __call__(
        self, job: JobSpec, run: RunFolder, *, resume: bool, on_progress: Callable[[Progress], None]
    ) -> Report:
        assert run.load_job() == job
        self.calls.append((job, run.path, resume))
        on_progress(Progress("starting", 0, job.train.steps))
        print("a library that prints on standard output")
        if self.error:
            raise self.error
        on_progress(Progress("training", job.train.steps, job.train.steps, 4.5, 1000.0, 0.5, 0.0))
        dense = job.memory is None
        return Report(
            name=job.name,
            test_perplexity=280.126,
            test_tokens=1000,
            memory_usage=None if dense else 0.804,
            kl_to_uniform=None if dense else 1.8512,
            top1_share=None if dense else 0.25,
            dead_slots=None if dense else 800,
            final_loss=4.5,
            tokens_per_second=7412.7,
            train_seconds=1.0,
            wall_seconds=2.0,
            steps=10,
            tokens=5120,
            dense_parameters=100,
            table_rows=4096,
            table_bytes=1 << 20,
            trainers=1,
            shards=2,
            restarts=0,
            cuts_failed=0,
            steps_skipped=0,
            run=str(run.path),
            cut=str(run.cuts_path / "step-10"),
            plots=[str(run.plots_path / "loss.png")],
        )


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Training:
    training = Training()
    module: Any = types.ModuleType("workers.supervisor")
    module.train = training
    monkeypatch.setitem(sys.modules, "workers.supervisor", module)
    monkeypatch.setattr("workers.preflight.check_job", training.check)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(JOB)
    return training


def train(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["train", *arguments], env={"COLUMNS": "200", "NO_COLOR": "1"})


def test_a_run_ends_with_its_figures_and_where_things_lie(training: Training, tmp_path: Path):
    result = train("job.yaml", "--set", "train.steps=20")
    assert result.exit_code == 0, result.stderr
    run = tmp_path / "runs" / "first"
    ((job, path, resume),) = training.calls
    assert (job.train.steps, path, resume) == (20, run, False)
    figures = dict(line.split("  ", 1) for line in result.stdout.splitlines())
    assert {name: value.strip() for name, value in figures.items()} == {
        "test perplexity": "280.13",
        "memory usage": "80.4 %",
        "KL to uniform": "1.851 nats",
        "top 1 % share": "25.0 %",
        "tokens/s": "7,413",
        "report": str(run / "report.json"),
        "plots": str(run / "plots" / "loss.png"),
        "cut": str(run / "cuts" / "step-10"),
    }
    assert "training  step 20/20  loss 4.500  1,000 tokens/s  memory usage 50%  0:00 left" in result.stderr
    assert "a library" in result.stderr


def test_json_is_all_there_is_on_standard_output(training: Training):
    result = train("job.yaml", "--json")
    assert Report.model_validate(json.loads(result.stdout)).test_perplexity == 280.126
    assert "a library" in result.stderr


@pytest.mark.parametrize("twin", ["dense", "deep"])
def test_a_twin_runs_beside_its_job(training: Training, tmp_path: Path, twin: str):
    result = train("job.yaml", "--twin", twin)
    ((job, path, _),) = training.calls
    assert (job.memory, path) == (None, tmp_path / "runs" / f"first-{twin}")
    assert "KL" not in result.stdout
    assert "usage" not in result.stdout


def test_an_older_run_is_refused_then_replaced_on_request(training: Training, tmp_path: Path):
    run = tmp_path / "mine"
    assert train("job.yaml", "--run", "mine").exit_code == 0
    (run / "metrics.jsonl").write_text("precious\n")
    again = train("job.yaml", "--run", "mine")
    assert again.exit_code == 2
    assert "--resume" in again.stderr
    assert "--overwrite" in again.stderr
    assert (run / "metrics.jsonl").read_text() == "precious\n"
    assert len(training.calls) == 1
    assert train("job.yaml", "--run", "mine", "--overwrite").exit_code == 0
    assert not (run / "metrics.jsonl").exists()


def test_overwrite_removes_nothing_but_runs(training: Training, tmp_path: Path):
    folder = tmp_path / "folder"
    folder.mkdir()
    assert train("job.yaml", "--run", "folder").exit_code == 0  # an empty folder is free
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "data.txt").write_text("data")
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to(folder)
    for run, reason in [
        (".", "is not the folder of a run"),  # it holds a job.yaml, which is the user's own
        ("other", "is not the folder of a run"),
        ("file", "is not the folder of a run"),
        ("link", "is a link"),
    ]:
        result = train("job.yaml", "--run", run, "--overwrite")
        assert (result.exit_code, reason in result.stderr) == (2, True), result.stderr
    result = train("folder/job.yaml", "--run", "folder", "--overwrite")
    assert "holds the job file itself" in result.stderr
    assert len(training.calls) == 1
    kept = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {"thesis.txt", "job.yaml", "file", "other/data.txt", "folder/job.yaml"} <= kept


def test_a_mistake_in_the_job_leaves_no_folder(training: Training, tmp_path: Path):
    assert train("job.yaml", "--set", "memory.k=65").exit_code == 2
    assert not (tmp_path / "runs").exists()
    train("job.yaml")
    assert train("job.yaml", "--set", "memory.k=65", "--overwrite").exit_code == 2
    assert (tmp_path / "runs" / "first" / "job.yaml").exists()


def test_a_job_that_can_not_run_here_leaves_all_runs_as_they_are(training: Training, tmp_path: Path):
    assert train("job.yaml").exit_code == 0
    before = (tmp_path / "runs/first/job.yaml").read_bytes()
    training.unfit = UsageError("There is no corpus.")
    for arguments in (
        ["job.yaml", "--overwrite", "--set", "seed=1"],
        ["--resume", "runs/first", "--set", "seed=1"],
        ["job.yaml", "--run", "other"],
    ):
        result = train(*arguments)
        assert (result.exit_code, "There is no corpus." in result.stderr) == (2, True)
    assert (tmp_path / "runs/first/job.yaml").read_bytes() == before
    assert not (tmp_path / "other").exists()
    assert len(training.calls) == 1


def test_resume_takes_the_job_of_the_run_and_keeps_what_is_changed(training: Training, tmp_path: Path):
    train("job.yaml", "--set", "train.lr=0.5")
    (tmp_path / "job.yaml").unlink()
    result = train("--resume", "runs/first", "--set", "train.steps=30")
    assert result.exit_code == 0, result.stderr
    (first, path, _), (second, same_path, resumed) = training.calls
    assert (path == same_path, resumed) == (True, True)
    assert (second.train.steps, second.train.lr) == (30, 0.5)
    assert second.data == first.data
    assert RunFolder(path).load_job() == second


def test_a_refused_change_leaves_the_run_as_it_is(training: Training, tmp_path: Path):
    train("job.yaml")
    before = (tmp_path / "runs/first/job.yaml").read_bytes()
    result = train("--resume", "runs/first", "--set", "train.steps=0")
    assert result.exit_code == 2
    assert (tmp_path / "runs/first/job.yaml").read_bytes() == before


def test_ctrl_c_says_how_to_go_on(training: Training, tmp_path: Path):
    training.error = KeyboardInterrupt()
    result = train("job.yaml")
    assert result.exit_code == 130
    assert f"pkm train --resume {tmp_path}/runs/first" in result.stderr
    assert result.stdout == ""
