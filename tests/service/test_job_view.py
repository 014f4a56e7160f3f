"""What a job looks like while it is watched, and where its log begins."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from memory_store.errors import UsageError
from service.client import JobUpdate
from service.job_view import JobView, curve, render
from service.jobs.demand import Demand, Resources
from service.jobs.job import Change, Job
from service.jobs.log_file import offset_of_tail, read_log
from service.jobs.states import JobState
from service.profile import open_client
from workers.report import Progress, StepRecord
from workers.shard_load import ShardLoad

ONE = Resources(cpus=1)


def record(step: int, loss: float, **more: float) -> StepRecord:
    figures = {"learning_rate": 0.1, "gradient_norm": 1.0, "seconds": 0.1, "tokens_per_second": 1e4}
    return StepRecord.model_validate({"step": step, "loss": loss, **figures, **more})


def update(state: JobState, progress: Progress | None = None) -> JobUpdate:
    job = Job(
        "abcdefghijkm", "ann", "small", 0, Demand(shards=1, shard=ONE, trainers=1, trainer=ONE),
        state, "it trains", "run", 1, 1.0, 2.0, 2.0, None,
    )  # fmt: skip
    return JobUpdate(job, (Change(2.0, state, "it trains"),), progress)


def test_the_curve_goes_where_the_values_go() -> None:
    assert curve([8, 7, 6, 5, 4, 3, 2, 1]) == "█▇▆▅▄▃▂▁"
    assert curve([1, 1, 1]) == "▁▁▁"
    assert curve([float("nan"), 2, 1, float("inf")]) == "█▁"
    assert curve([]) == ""
    assert len(curve(list(range(1000)), columns=60)) == 60


def test_the_view_shows_all_that_is_known() -> None:
    out = io.StringIO()
    progress = Progress("training", 30, 60, 2.5, 12_345.0, 0.42, 75.0)
    records = [
        record(10, 4.0),
        record(20, 3.0, validation_perplexity=55.5, validation_kl=1.25),
        record(30, 2.5),
    ]
    busy = ShardLoad(
        shard=7, address="10.0.0.1:99", busy_cores=0.25, calls_per_second=42, memory_bytes=3 << 20
    )
    seen = replace(update(JobState.RUNNING, progress), shards=(busy,))
    Console(file=out, width=100).print(render(seen, records))
    shown = out.getvalue()
    figures = [
        "30 of 60",
        "12,345 tokens/s",
        "1:15",
        "42%",
        "1.250 nats",
        "2.5000",
        "10.0.0.1:99",
        "0.25",
        "3 MiB",
    ]
    for figure in ["abcdefghijkm", "running: it trains", *figures]:
        assert figure in shown, figure


def test_elsewhere_than_on_a_terminal_there_are_lines() -> None:
    out = io.StringIO()
    with JobView(Console(file=out, width=200), lambda step: []) as view:
        view.show(update(JobState.RUNNING, Progress("training", 30, 60, 2.5)))
    assert out.getvalue().splitlines() == ["running: it trains", "training  step 30/60  loss 2.500"]


@pytest.mark.parametrize(
    ("lines", "rest"),
    [(0, b""), (1, b"three\n"), (2, b"two\nthree\n"), (9, b"one\ntwo\nthree\n")],
)
def test_the_tail_of_a_log(tmp_path: Path, lines: int, rest: bytes) -> None:
    path = tmp_path / "job.log"
    assert (offset_of_tail(path, lines), read_log(path, 0)) == (0, b"")
    path.write_bytes(b"one\ntwo\nthree\n")
    assert read_log(path, offset_of_tail(path, lines)) == rest


def test_a_profile_says_whom_to_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile, token = tmp_path / "profile.yaml", tmp_path / "token"
    monkeypatch.setenv("PKM_PROFILE", str(profile))
    for name in ("PKM_SERVER", "PKM_TOKEN_FILE", "PKM_CERTIFICATE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match=r"profile .* can't be read"):
        open_client(None)
    profile.write_text("sever: here\n")
    with pytest.raises(UsageError, match="is no profile"):
        open_client(None)
    profile.write_text(f"server: 127.0.0.1:1\ntoken_file: {token}\n")
    with pytest.raises(UsageError, match=r"token .* can't be read"):
        open_client(None)
    token.write_text("secret\n")
    open_client(None).close()
    with pytest.raises(UsageError, match="whose certificate to trust"):
        open_client("pkm.example.org:7070")
