"""`pkm finetune`: go on with a trained model on new text, all of it or only the rows of its memory that the text needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.arguments import Overrides, TrainedRun, trained_run
from service.cli.asking import ServerOption
from service.cli.output import JsonOption, data_only, messages
from service.cli.train import print_report


def finetune(
    run: TrainedRun,
    data: Annotated[
        Path,
        typer.Option(
            metavar="CORPUS",
            help="New text, prepared with the run's tokenizer (pkm data prepare --tokenizer).",
            show_default=False,
        ),
    ],
    steps: Annotated[int, typer.Option(min=1, help="Steps to go on for.", show_default=False)],
    only_rows: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="T",
            help="Update only the T rows of each step that are most specific to its text; everything else stays.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--run",
            metavar="FOLDER",
            help="Run folder to make; RUN-finetuned unless given.",
            show_default=False,
        ),
    ] = None,
    background_batches: Annotated[
        int, typer.Option(min=1, help="Batches of the old text that tell which rows it needs.")
    ] = 100,
    overrides: Overrides = None,
    server: ServerOption = None,
    json: JsonOption = False,
) -> None:
    """Go on with the last cut of a run on new text, in a run of its own; evaluate it on the test part of that text."""
    from memory_store.cuts import cut_step
    from service.job_file import load_job
    from service.progress import ProgressDisplay
    from workers.finetuning import begin_finetuning
    from workers.preflight import check_job
    from workers.run_folder import RunFolder
    from workers.supervisor import train as train_job
    from workers.training_cut import latest_cut

    base = trained_run(run, server)
    base.load_job()
    last = cut_step(latest_cut(base.cuts_path)) + steps
    settings = [
        f"data.corpus={data.absolute()}",
        f"train.steps={last}",
        f"train.only_rows={'null' if only_rows is None else only_rows}",
        "train.schedule=constant",
        f"train.cut_every={steps}",
    ]
    job = load_job(base.job_path, [*settings, *(overrides or [])]).job
    check_job(job)
    folder = RunFolder(out or run.with_name(f"{run.name}-finetuned"))
    console = messages()
    console.print(f"Finetuning {base.path} in {folder.path}", markup=False, soft_wrap=True)
    with data_only(), ProgressDisplay(console) as display:
        begin_finetuning(base, folder, job, background_batches)
        report = train_job(job, folder, resume=True, on_progress=display.show)
    if report is None:
        console.print(f"Stopped. Go on with: pkm train --resume {folder.path}", markup=False, soft_wrap=True)
    else:
        print_report(report, folder, json=json)
