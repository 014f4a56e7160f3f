"""What commands share that ask a service: whom, about which job, how the answer is printed, and how they end."""

from __future__ import annotations

import datetime
import os
import time
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from service.cli.output import print_json

if TYPE_CHECKING:
    from service.client import Client
    from service.jobs.job import Job
    from service.jobs.states import JobState

DONE, JOB_FAILED, NOT_FINISHED, CANCELLED, TIMED_OUT, DETACHED = 0, 100, 101, 103, 124, 130
_COMPLETION_S = 0.3
_COMPLETED_JOBS, _COMPLETED_OF = 50, 500

Output = Literal["table", "json"]
OutputOption = Annotated[Output, typer.Option("-o", "--output", help="How standard output shows the answer.")]
ServerOption = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        envvar="PKM_SERVER",
        help="The service to ask; that of the profile, or of this machine, unless given.",
        show_default=False,
    ),
]


def complete_job(incomplete: str) -> list[tuple[str, str]]:
    """The newest jobs whose name or id begins so, each with its state; a name only if no other of them has it. None if the
    service does not answer at once."""
    try:
        from service.profile import open_client

        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        with open_client(None, timeout_s=_COMPLETION_S) as client:
            jobs = list(islice(client.list(), _COMPLETED_OF))
    except Exception:  # whatever is wrong, the command itself will say it
        return []
    named = Counter(job.name for job in jobs)
    names = [(job.name, f"{job.id}, {job.state}") for job in jobs if named[job.name] == 1]
    ids = [(job.id, f"{job.name}, {job.state}") for job in jobs]
    return [offer for offer in (*names, *ids) if offer[0].startswith(incomplete)][:_COMPLETED_JOBS]


JobId = Annotated[
    str,
    typer.Argument(
        metavar="JOB",
        help="Id of a job or its beginning, or its name.",
        autocompletion=complete_job,
        show_default=False,
    ),
]


def ask(server: str | None) -> Client:
    """A client of the service that is meant."""
    from service.profile import open_client

    return open_client(server)


def exit_code(state: JobState) -> int:
    """How a command ends that asks what has become of a job."""
    codes = {"succeeded": DONE, "failed": JOB_FAILED, "cancelled": CANCELLED}
    return codes.get(state, NOT_FINISHED)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under headings, in columns that are as wide as they must be."""
    lines = [headings, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


def print_jobs(jobs: Sequence[Job], output: Output) -> None:
    """Print jobs, a line each."""
    if output == "json":
        print_json(jobs)
        return
    headings = ("JOB", "NAME", "STATE", "PRIORITY", "SUBMITTED", "TOOK", "REASON")
    print_table(headings, [_line(job) for job in jobs])


def print_job(job: Job, output: Output) -> None:
    """Print one job as it is."""
    if output == "json":
        print_json(job)
    else:
        print_jobs([job], output)


def when(seconds: float) -> str:
    """A time as people of this place write it."""
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def _line(job: Job) -> tuple[str, ...]:
    from service.progress import duration

    took = ""
    if job.started_at is not None:
        took = duration((job.ended_at or time.time()) - job.started_at)
    wish = f" ({job.wanted} asked)" if job.wanted == "cancel" and job.ended_at is None else ""
    return (
        job.id, job.name, job.state + wish, str(job.priority), when(job.submitted_at), took,
        job.reason.partition("\n")[0][:80],
    )  # fmt: skip
