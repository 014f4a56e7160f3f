"""`pkm export`: a trained model as one file that plain PyTorch loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from service.cli.arguments import TrainedRun, trained_run
from service.cli.asking import OutputOption, ServerOption
from service.cli.output import JsonOption, data_only, print_figures, print_json


def export(
    run: TrainedRun,
    target: Annotated[
        Path, typer.Argument(metavar="FILE.safetensors", help="File to write.", show_default=False)
    ],
    dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="Number type of the written weights.")
    ] = "float32",
    server: ServerOption = None,
    output: OutputOption = "table",
    json: JsonOption = False,
) -> None:
    """Write the last cut of a run, value table included, into one safetensors file with a config beside."""
    from workers.export import export_run

    with data_only():
        report = export_run(trained_run(run, server), target, dtype)
    if json or output == "json":
        print_json(report)
    else:
        figures = {
            "weights": str(report.file),
            "config": str(report.config),
            "parameters": f"{report.parameters:,}",
            "size": f"{report.bytes / 1e6:,.1f} MB",
        }
        print_figures(figures)
