"""`pkm train`: run one job here, from its file to its report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from service.cli.arguments import Overrides
from service.cli.output import JsonOption, data_only, messages, print_figures, print_json, share

if TYPE_CHECKING:
    from workers.job_spec import JobSpec
    from workers.report import Report
    from workers.run_folder import RunFolder


def train(
    job_file: Annotated[
        Path | None, typer.Argument(metavar="JOB.yaml", help="Job file.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Run folder to make; runs/NAME unless given.", show_default=False
        ),
    ] = None,
    twin: Annotated[
        Literal["dense", "deep"] | None,
        typer.Option(help="Train the same model without memory: dense, or deep with twice the layers."),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Go on with a run from its last cut.", show_default=False),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove the run that is in the run folder already.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Train a model on this machine, with an embedded Ray, and evaluate it."""
    from memory_store.errors import UsageError
    from service.job_file import load_job
    from service.progress import ProgressDisplay
    from workers.preflight import check_job
    from workers.run_folder import RunFolder

    if (job_file is None) == (resume is None):
        raise UsageError("Give either a job file (JOB.yaml) or --resume RUN, to go on with a run.")
    if job_file is not None:
        job = load_job(job_file, overrides or (), twin).job
        check_job(job)
        folder = RunFolder(run or Path("runs") / job.name)
        if folder.path.exists():
            _make_room(folder, job_file, overwrite)
        folder.create(job)
    elif resume is not None:
        if run or twin or overwrite:
            raise UsageError(
                "--resume goes on with a run as it is; --run, --twin and --overwrite don't go with it."
            )
        folder = RunFolder(resume)
        job = _change_job(folder, overrides or [])

    from workers.supervisor import train as train_job

    console = messages()
    console.print(f"Training {job.name} in {folder.path}", markup=False, soft_wrap=True)
    try:
        with data_only(), ProgressDisplay(console) as display:
            report = train_job(job, folder, resume=resume is not None, on_progress=display.show)
    except KeyboardInterrupt:
        console.print(f"Go on later with: pkm train --resume {folder.path}", markup=False, soft_wrap=True)
        raise
    if report is None:
        console.print(
            f"Stopped after a cut. Go on with: pkm train --resume {folder.path}", markup=False, soft_wrap=True
        )
        return
    print_report(report, folder, json=json)


def _make_room(folder: RunFolder, job_file: Path, overwrite: bool) -> None:
    """Refuse a folder that holds something, unless it is a run that may be removed: then remove it."""
    from memory_store.errors import UsageError

    path = folder.path
    if path.is_dir() and not any(path.iterdir()):
        return
    if not (folder.exists() and folder.cuts_path.is_dir() and folder.plots_path.is_dir()):
        raise UsageError(f"{path} exists and is not the folder of a run; choose another folder with --run.")
    if not overwrite:
        raise UsageError(
            f"{path} holds a run already; go on with it (pkm train --resume {path}), "
            "replace it with --overwrite, or choose another folder with --run."
        )
    if path.is_symlink() or path.resolve() in job_file.resolve().parents:
        reason = "is a link" if path.is_symlink() else "holds the job file itself"
        raise UsageError(f"{path} {reason} and is not removed; choose another folder with --run.")
    folder.remove()


def _change_job(folder: RunFolder, overrides: list[str]) -> JobSpec:
    """The job of an older run with `overrides` put in, which the run keeps."""
    from memory_store.errors import UsageError
    from service.job_file import load_job
    from workers.preflight import check_job

    if not folder.exists():
        raise UsageError(f"{folder.path} is not the folder of a run; give one that `pkm train` made.")
    job = load_job(folder.job_path, overrides).job
    check_job(job)
    if overrides:
        folder.save_job(job)
    return job


def print_report(report: Report, folder: RunFolder, *, json: bool) -> None:
    """Print the figures of a finished run, or all of its report."""
    if json:
        print_json(report)
        return
    figures = {"test perplexity": f"{report.test_perplexity:.2f}"}
    if report.kl_to_uniform is not None:  # a model with memory
        figures |= {
            "memory usage": share(report.memory_usage),
            "KL to uniform": f"{report.kl_to_uniform:.3f} nats",
            "top 1 % share": share(report.top1_share),
        }
    if report.cache_hit_rate is not None:
        figures["found on the device"] = f"{share(report.cache_hit_rate)} of the rows looked up"
    figures |= {
        "tokens/s": f"{report.tokens_per_second:,.0f}",
        "report": str(folder.report_path),
        "plots": ", ".join(report.plots),
        "cut": report.cut,
    }
    print_figures(figures)
