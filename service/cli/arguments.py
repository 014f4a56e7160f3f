"""Arguments that several commands take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.asking import ask, complete_job
from service.cli.output import messages

if TYPE_CHECKING:
    from service.client import Client
    from workers.run_folder import RunFolder


def complete_setting(incomplete: str) -> list[tuple[str, str]]:
    """The settings whose dotted path starts with `incomplete`, each with what it means."""
    from service.job_file import describe_settings

    return [(f"{path}=", help) for path, help in describe_settings() if path.startswith(incomplete)]


JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="Job file.", show_default=False)]

TrainedRun = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="Run folder that `pkm train` made, or a job of a service: its id or the beginning of it, or its name.",
        show_default=False,
        autocompletion=complete_job,
    ),
]


def trained_run(given: Path, server: str | None) -> RunFolder:
    """The run in a folder, or that of a job of a service, whose files are fetched if they can't be read here.

    Raises UsageError if it is neither, NoSuchJobError if the service has no such job, JobConflictError if it has no cut.
    """
    from memory_store.errors import UsageError
    from service.jobs.errors import ServerUnreachableError
    from service.profile import ProfileError
    from workers.run_folder import RunFolder

    if given.exists() or not names_job(given):
        return RunFolder(given)
    try:
        client = ask(server)
        details = client.get(str(given))
    except (ServerUnreachableError, ProfileError) as error:
        raise UsageError(f"There is no run folder {given}; and of jobs nothing is known: {error}") from None
    with client:
        run = RunFolder(details.run)
        return run if os.access(run.job_path, os.R_OK) else _fetched(client, details.job.id)


def names_job(given: Path) -> bool:
    """Whether this may be meant for a job of a service, and not for a folder."""
    return len(given.parts) == 1 and not str(given).startswith(".")


def _fetched(client: Client, job_id: str) -> RunFolder:
    """The last cut of a job, fetched from its service, with a line on standard error that tells how far that is."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    from service.remote_run import cache_folder, fetch_run

    with Progress(
        f"Fetching the last cut of {job_id}",
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=messages(),
    ) as bar:
        task = bar.add_task("", total=None)
        return fetch_run(
            client,
            job_id,
            cache_folder(client.server, job_id),
            lambda done, total: bar.update(task, completed=done, total=total),
        )


Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Replace a setting of the job, such as train.lr=3e-4 or memory=null; may be given again.",
        autocompletion=complete_setting,
        show_default=False,
    ),
]
