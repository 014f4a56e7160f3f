"""The command line of the findings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from findings.cases import COMPARISONS
from findings.finetuning import record_finetunings
from findings.report import PAGE, write_report
from findings.results import RESULTS
from findings.speeds import record_speeds
from findings.training import current_commit, prepare_text, record_trainings
from memory_store.errors import UsageError

app = typer.Typer(help="The paper's findings, measured again.", pretty_exceptions_enable=False)

Results = Annotated[Path, typer.Option(help="The folder of the results.")]
Name = Annotated[str, typer.Argument(metavar="|".join([*COMPARISONS, "all"]))]


@app.command()
def run(name: Name, results: Results = RESULTS) -> None:
    """Measure what a finding compares, as far as it has not been; stopped, it goes on where it was."""
    if name not in (*COMPARISONS, "all"):
        raise UsageError(f"There is no finding {name!r}; there are {', '.join(COMPARISONS)}, and all.")
    prepare_text()
    commit = current_commit()
    findings = list(COMPARISONS) if name == "all" else [name]
    # Seed by seed, so that what is there when this is stopped can be compared.
    for seed in sorted({seed for finding in findings for seed in COMPARISONS[finding].seeds}):
        for finding in findings:
            if seed in COMPARISONS[finding].seeds:
                record = record_finetunings if COMPARISONS[finding].finetunes else record_trainings
                record(finding, seed, results, commit=commit, say=typer.echo)
    for finding in findings:
        if COMPARISONS[finding].speeds:
            record_speeds(finding, results, commit=commit)


@app.command()
def report(results: Results = RESULTS) -> None:
    """Write docs/results.md and its pictures from the results."""
    typer.echo(f"Written: {write_report(results, PAGE)}")


def main() -> None:
    """Run the command of sys.argv; a mistake of its user ends it with status 2."""
    try:
        app()
    except UsageError as error:
        Console(stderr=True).print(str(error))
        sys.exit(2)
