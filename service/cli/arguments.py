"""Arguments that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.asking import ask, complete_job

if TYPE_CHECKING:
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
        help="Run folder that `pkm train` made, or the id of a job of a service.",
        show_default=False,
        autocompletion=complete_job,
    ),
]


def trained_run(given: Path) -> RunFolder:
    """The run in a folder, or that of a job of a service whose files can be read here.

    Raises UsageError if it is neither, NoSuchJobError if the service has no such job.
    """
    from memory_store.errors import UsageError
    from service.jobs.database import looks_like_id
    from service.jobs.errors import ServerUnreachableError
    from workers.run_folder import RunFolder

    if given.exists() or not looks_like_id(str(given)):
        return RunFolder(given)
    try:
        with ask(None) as client:
            details = client.get(str(given))
    except (ServerUnreachableError, UsageError) as error:
        raise UsageError(f"There is no run folder {given}; and of jobs nothing is known: {error}") from None
    run = RunFolder(details.run)
    if not run.exists():
        raise UsageError(
            f"The files of job {details.job.id} are at {details.run} on the hosts of its cluster; use this command there."
        )
    return run


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
