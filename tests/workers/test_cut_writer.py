"""Cuts beside the training: of the step at which they begin, whatever comes after; and a full disk stops cuts alone."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from memory_store import shard_cuts
from memory_store.cuts import complete_cuts, cut_step
from tests.small_job import small_job, table_content
from workers.events import read_events
from workers.job_spec import JobSpec
from workers.metrics_log import MetricsLog
from workers.report import StepRecord, read_records
from workers.run_folder import RunFolder
from workers.trainer_group import train


class StoppedError(Exception):
    """The training was stopped on purpose."""


def run_in(folder: Path, job: JobSpec, **how: Any) -> RunFolder:
    run = RunFolder(folder)
    if not run.exists():
        run.create(job)
    train(job, run, on_progress=lambda _: None, **how)
    return run


def test_a_cut_that_is_written_beside_steps_is_of_the_step_at_which_it_began(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(corpus, train__cut_every=20)
    straight = run_in(tmp_path / "straight", job)

    reached, written = threading.Event(), threading.Event()
    original, append = shard_cuts.write_buckets, MetricsLog.append

    def late(*given: Any) -> Any:
        assert reached.wait(60)
        entry = original(*given)
        if given[1].version == 20:
            written.set()
        return entry

    def follow(self: MetricsLog, record: StepRecord) -> None:
        append(self, record)
        if record.step == 30:
            assert not complete_cuts(tmp_path / "run" / "cuts")
            reached.set()
        if record.step == 39:
            assert written.wait(60)
            raise StoppedError

    with monkeypatch.context() as patched:
        patched.setattr(shard_cuts, "write_buckets", late)
        patched.setattr(MetricsLog, "append", follow)
        with pytest.raises(StoppedError):
            run_in(tmp_path / "run", job)
    deadline = threading.Event()
    while not complete_cuts(tmp_path / "run" / "cuts"):
        deadline.wait(0.05)
    assert [cut_step(folder) for folder in complete_cuts(tmp_path / "run" / "cuts")] == [20]
    run = run_in(tmp_path / "run", job, resume=True)
    assert table_content(complete_cuts(run.cuts_path)[-1]) == table_content(
        complete_cuts(straight.cuts_path)[-1]
    )
    assert [record.loss for record in read_records(run.metrics_path)] == [
        record.loss for record in read_records(straight.metrics_path)
    ]


TRAIN = """
import resource, signal, sys
from pathlib import Path
from workers.run_folder import RunFolder
from workers.trainer_group import train
run = RunFolder(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
train(run.load_job(), run, resume=True, on_progress=lambda made: made.news and print(made.news, flush=True))
"""


@pytest.mark.parametrize(
    ("sub_keys", "said"),
    [
        (32, "dense-optimizer.safetensors can't be written"),
        pytest.param(64, "Shard . could not write the cut", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_stops_cuts_and_nothing_else(
    sub_keys: int, said: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files may not grow beyond what everything but a cut needs: the system refuses their writing, as a full disk does."""
    job = small_job(corpus, train__cut_every=20, train__steps=80, memory__sub_keys=sub_keys)
    straight = run_in(tmp_path / "straight", job)
    append = MetricsLog.append

    def stop(self: MetricsLog, record: StepRecord) -> None:
        append(self, record)
        if record.step == 39:
            raise StoppedError

    with monkeypatch.context() as patched:
        patched.setattr(MetricsLog, "append", stop)
        with pytest.raises(StoppedError):
            run_in(tmp_path / "run", job)
    run = RunFolder(tmp_path / "run")
    largest = max(path.stat().st_size for path in complete_cuts(run.cuts_path)[-1].iterdir())
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(run.path), str(largest // 2)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "can't be written" in done.stderr
    assert "pkm train --resume" in done.stderr
    assert "The cut of step 40 failed, the run goes on without it" in done.stdout
    assert [record.step for record in read_records(run.metrics_path)] == list(range(1, 81))
    events = read_events(run.events_path)
    assert [event.step for event in events if event.kind == "cut_failed"] == [40, 60, 80, 80, 80]
    assert re.search(said, events[0].message)
    assert "File too large" in events[0].message
    # What is there is the older cut, and nothing half-written.
    assert [folder.name for folder in run.cuts_path.iterdir()] == ["step-00000020"]

    # With room again it goes on, to the same bytes.
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    run_in(run.path, job, resume=True)
    assert table_content(complete_cuts(run.cuts_path)[-1]) == table_content(
        complete_cuts(straight.cuts_path)[-1]
    )
    assert [record.loss for record in read_records(run.metrics_path)] == [
        record.loss for record in read_records(straight.metrics_path)
    ]


def test_lines_of_metrics_wait_for_a_disk_that_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(step: int) -> StepRecord:
        return StepRecord(
            step=step, loss=1.0, learning_rate=0.1, gradient_norm=1.0, seconds=1.0, tokens_per_second=1.0
        )

    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append(record(1))
    size = (tmp_path / "metrics.jsonl").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
    try:
        log.append(record(2))
        log.append(record(3))
        assert (tmp_path / "metrics.jsonl").stat().st_size == size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.append(record(4))
    assert [line.step for line in read_records(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
