"""Arguments that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def complete_setting(incomplete: str) -> list[tuple[str, str]]:
    """The settings whose dotted path starts with `incomplete`, each with what it means."""
    from service.job_file import describe_settings

    return [(f"{path}=", help) for path, help in describe_settings() if path.startswith(incomplete)]


JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="Job file.", show_default=False)]

RunFolderPath = Annotated[
    Path, typer.Argument(metavar="RUN", help="Run folder that `pkm train` made.", show_default=False)
]

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
