"""`pkm export`: a trained model as a folder for plain PyTorch, transformers and lm-eval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from service.cli.arguments import TrainedRun, trained_run
from service.cli.asking import OutputOption, ServerOption
from service.cli.output import JsonOption, data_only, print_figures, print_json


def export(
    run: TrainedRun,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to make.", show_default=False)],
    table: Annotated[
        Literal["float32", "bfloat16", "int8"],
        typer.Option(help="Number type of the value tables; int8 has one scale a row."),
    ] = "float32",
    measure: Annotated[
        bool, typer.Option("--measure", help="Also compare perplexities on the test text, before and after.")
    ] = False,
    server: ServerOption = None,
    output: OutputOption = "table",
    json: JsonOption = False,
) -> None:
    """Write the last cut of a run, value tables included, as a folder that needs neither pkm nor a service.

    Its README.md says how to load it with PyTorch alone, with transformers, and with lm-eval.
    """
    from workers.export import export_model
    from workers.export_loss import measure_loss
    from workers.trained_model import load_trained_model

    with data_only():
        trained = load_trained_model(trained_run(run, server))
        report = export_model(trained, folder, table)
        if measure:
            report = report.model_copy(update={"loss": measure_loss(trained, folder)})
    if json or output == "json":
        print_json(report)
        return
    figures = {
        "folder": str(report.folder),
        "table": report.table,
        "parameters": f"{report.parameters:,}",
        "size": f"{report.bytes / 1e6:,.1f} MB",
    }
    if report.loss is not None:
        figures["perplexity, as trained"] = f"{report.loss.trained:.4f}"
        figures["perplexity, exported"] = f"{report.loss.exported:.4f} ({report.loss.share:+.4%})".replace(
            "%", " %"
        )
    print_figures(figures)
