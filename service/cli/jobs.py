"""The commands that ask a service about jobs: list, status, watch, logs, cancel, pause, resume, cuts, top."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.asking import (
    DETACHED,
    JobId,
    OutputOption,
    ServerOption,
    ask,
    exit_code,
    print_job,
    print_jobs,
    print_table,
    when,
)
from service.cli.follow import follow_job
from service.cli.output import messages, print_figures, print_json

if TYPE_CHECKING:
    from service.jobs.states import JobState

Reason = Annotated[str, typer.Option(help="Why; kept with the job.")]


def _state(text: str) -> JobState:
    from service.jobs.states import JobState

    try:
        return JobState(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is none of {', '.join(JobState)}") from None


def list_jobs(
    state: Annotated[
        list[str] | None,
        typer.Option(help="Only jobs in this state; may be given again.", show_default=False),
    ] = None,
    name: Annotated[str, typer.Option(help="Only jobs of this name.", show_default=False)] = "",
    limit: Annotated[int, typer.Option(min=1, help="Jobs to show at most.")] = 50,
    server: ServerOption = None,
    output: OutputOption = "table",
) -> None:
    """List jobs, the newest first."""
    from itertools import islice

    with ask(server) as client:
        print_jobs(list(islice(client.list([_state(text) for text in state or ()], name), limit)), output)


def status(job: JobId, server: ServerOption = None, output: OutputOption = "table") -> None:
    """Show a job and its states so far. Exits with 0 (succeeded), 100 (failed), 101 (not finished), 103 (cancelled)."""
    with ask(server) as client:
        details = client.get(job)
    if output == "json":
        print_json(details)
    else:
        print_job(details.job, output)
        typer.echo()
        rows = [(when(change.time), str(change.state), change.reason) for change in details.changes]
        print_table(("TIME", "STATE", "REASON"), rows)
    raise typer.Exit(exit_code(details.job.state))


def watch(
    job: JobId,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds to watch at most.", show_default=False)
    ] = None,
    server: ServerOption = None,
    output: OutputOption = "table",
) -> None:
    """Watch a job live until it has ended; Ctrl-C leaves it running. Exits like `pkm status`."""
    with ask(server) as client:
        follow_job(client, job, timeout).finish(output)


def logs(
    job: JobId,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the job has ended.")] = False,
    tail: Annotated[
        int | None, typer.Option(min=0, help="Only the last so many lines.", show_default=False)
    ] = None,
    server: ServerOption = None,
) -> None:
    """Print what the processes of a job have printed."""
    with ask(server) as client:
        found = client.get(job).job
        try:
            for part in client.logs(found.id, follow=follow, tail=tail):
                sys.stdout.buffer.write(part)
                sys.stdout.buffer.flush()
        except KeyboardInterrupt:
            messages().print(f"Detached; {found.id} is left as it is.", markup=False)
            raise typer.Exit(DETACHED) from None


def cancel(
    job: JobId, reason: Reason = "", server: ServerOption = None, output: OutputOption = "table"
) -> None:
    """End a job after a last cut."""
    with ask(server) as client:
        print_job(client.cancel(job, reason), output)


def pause(
    job: JobId, reason: Reason = "", server: ServerOption = None, output: OutputOption = "table"
) -> None:
    """Have a job rest after a cut, and give its place to others."""
    with ask(server) as client:
        print_job(client.pause(job, reason), output)


def resume(
    job: JobId, reason: Reason = "", server: ServerOption = None, output: OutputOption = "table"
) -> None:
    """Have a paused job go on from its last cut, when its turn comes."""
    with ask(server) as client:
        print_job(client.resume(job, reason), output)


def cuts(job: JobId, server: ServerOption = None, output: OutputOption = "table") -> None:
    """List the complete checkpoints of a job."""
    with ask(server) as client:
        found = client.cuts(job)
    if output == "json":
        print_json(found)
    else:
        rows = [(str(cut.step), when(cut.written_at), f"{cut.bytes / 2**20:.1f} MiB") for cut in found]
        print_table(("STEP", "WRITTEN", "SIZE"), rows)


def top(server: ServerOption = None, output: OutputOption = "table") -> None:
    """Show what the cluster has, what jobs take of it, and your jobs that run, with their shards."""
    from service.job_view import load_cells
    from service.jobs.states import WITH_DRIVER

    with ask(server) as client:
        load = client.cluster()
        running = [next(client.watch(job.id)) for job in client.list(sorted(WITH_DRIVER))]
    if output == "json":
        print_json({"cluster": load, "jobs": running})
        return
    print_figures(
        {
            "hosts": "; ".join(map(str, load.hosts)) or "none",
            "taken by jobs": str(load.taken),
            "jobs": f"{load.jobs_active} with processes, {load.jobs_waiting} waiting",
        }
    )
    typer.echo()
    print_jobs([update.job for update in running], output)
    shards = [(update.job.id, *load_cells(shard)) for update in running for shard in update.shards]
    if shards:
        typer.echo()
        print_table(("JOB", "SHARD", "ADDRESS", "BUSY CORES", "CALLS/S", "MEMORY"), shards)
