"""The command line of the findings."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from findings.cases import COMPARISONS
from findings.results import RESULTS
from findings.training import current_commit, prepare_text, record_trainings

app = typer.Typer(help="The paper's findings, measured again.", pretty_exceptions_enable=False)

Results = Annotated[Path, typer.Option(help="The folder of the results.")]
Name = StrEnum("Name", [*COMPARISONS, "all"])


@app.command()
def run(name: Name, results: Results = RESULTS) -> None:
    """Train what a finding compares, as far as it has not been; stopped, it goes on where it was."""
    prepare_text()
    commit = current_commit()
    findings = list(COMPARISONS) if name == "all" else [str(name)]
    # Seed by seed, so that what is there when this is stopped can be compared.
    for seed in sorted({seed for finding in findings for seed in COMPARISONS[finding].seeds}):
        for finding in findings:
            if seed in COMPARISONS[finding].seeds:
                record_trainings(finding, seed, results, commit=commit, say=typer.echo)
