"""`pkm submit`: put a job into the queue of a service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.arguments import Overrides
from service.cli.asking import OutputOption, ServerOption, ask, print_job
from service.cli.follow import follow_job, wait_for_end
from service.cli.output import messages


def submit(
    job_file: Annotated[Path, typer.Argument(metavar="JOB.yaml", help="Job file.", show_default=False)],
    overrides: Overrides = None,
    priority: Annotated[int, typer.Option(min=-100, max=100, help="Jobs of higher priority go first.")] = 0,
    request_id: Annotated[
        str | None,
        typer.Option(help="Submitting again with the same id finds the same job.", show_default=False),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the job has ended.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show the job's progress until it has ended.")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds to wait at most.", show_default=False)
    ] = None,
    server: ServerOption = None,
    output: OutputOption = "table",
) -> None:
    """Submit a job to a service. Its id is printed at once; the job runs when its turn comes."""
    from service.job_file import load_job

    job = load_job(job_file, overrides or ()).job
    with ask(server) as client:
        submitted = client.submit(job, priority, request_id)
        if not (wait or follow):
            print_job(submitted, output)
            messages().print(
                f"Next: pkm watch {submitted.id}    pkm logs -f {submitted.id}    pkm cancel {submitted.id}",
                markup=False,
                soft_wrap=True,
            )
            return
        messages().print(f"Submitted {submitted.id}", markup=False)
        until_the_end = follow_job if follow else wait_for_end
        until_the_end(client, submitted.id, timeout).finish(output)
