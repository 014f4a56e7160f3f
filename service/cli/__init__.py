"""The command line `pkm`.

Every command keeps the same promises: `--help` ends with an example; with `--json` (those that ask a service: `-o json`),
standard output holds the figures as JSON and nothing else; the exit code is 0 when the work is done, 2 for a user's mistake,
1 for any other failure, 130 after Ctrl-C, and a failure is one clear sentence on standard error (`pkm --debug ...` shows the
trace). Commands that ask a service also end with 3 (it does not answer), 4 (not allowed), 100 (the job has failed), 101 (not
finished), 102 (no such job), 103 (cancelled) and 124 (waited long enough). Torch and Ray are imported by the commands that
need them, so that help and completion answer at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from service.cli import jobs
from service.cli.config import config
from service.cli.data import data
from service.cli.doctor import doctor
from service.cli.evaluate import evaluate
from service.cli.export import export
from service.cli.failures import CommandGroup
from service.cli.finetune import finetune
from service.cli.generate import generate
from service.cli.inspect import inspect
from service.cli.plan import plan
from service.cli.reshard import reshard
from service.cli.serve import serve
from service.cli.submit import submit
from service.cli.train import train
from service.cli.ui import ui

app = typer.Typer(
    name="pkm",
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start here: pkm train examples/quickstart.yaml\n\n"
    "Exit codes: 0 done, 1 failure, 2 usage, 3 the service does not answer, 4 not allowed, 100 the job has failed, "
    "101 not finished, 102 no such job, 103 cancelled, 124 the time is over, 130 stopped or detached",
)
app.add_typer(data, name="data")
app.command("train", epilog="Example: pkm train job.yaml --set train.lr=3e-4 --run runs/first")(train)
app.command(
    "finetune", epilog="Example: pkm finetune runs/quickstart --data data/news --steps 200 --only-rows 500"
)(finetune)
app.command("reshard", epilog="Example: pkm reshard runs/quickstart --shards 4")(reshard)
app.command("serve", epilog="Example: pkm serve --data examples/data")(serve)
app.command("submit", epilog="Example: pkm submit job.yaml --set train.lr=3e-4 --follow")(submit)
app.command("list", epilog="Example: pkm list --state running -o json")(jobs.list_jobs)
app.command("status", epilog="Example: pkm status k3f")(jobs.status)
app.command("watch", epilog="Example: pkm watch k3f")(jobs.watch)
app.command("logs", epilog="Example: pkm logs -f k3f")(jobs.logs)
app.command("cancel", epilog='Example: pkm cancel k3f --reason "a better one runs"')(jobs.cancel)
app.command("pause", epilog="Example: pkm pause k3f")(jobs.pause)
app.command("resume", epilog="Example: pkm resume k3f")(jobs.resume)
app.command("cuts", epilog="Example: pkm cuts k3f -o json")(jobs.cuts)
app.command("top", epilog="Example: pkm top")(jobs.top)
app.command("ui", epilog="Example: pkm ui --no-browser")(ui)
app.command("doctor", epilog="Example: pkm doctor --cluster -o json")(doctor)
app.command("plan", epilog="Example: pkm plan job.yaml --shards 16 --trainers 4 --network 25Gbit")(plan)
app.command("eval", epilog="Example: pkm eval runs/quickstart --json")(evaluate)
app.command("generate", epilog='Example: pkm generate runs/quickstart --prompt "My fellow citizens"')(
    generate
)
app.command("inspect", epilog="Example: pkm inspect runs/quickstart --picture accesses.png")(inspect)
app.command("export", epilog="Example: pkm export runs/quickstart model --table int8 --measure")(export)
app.add_typer(config, name="config")


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"pkm {version('pkm')}")
        raise typer.Exit


@app.callback()
def pkm(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the trace of a failure.")] = False,
) -> None:
    """Train transformers with product-key memories whose value table lives in sharded Ray actors."""


def main() -> None:
    """Run the command line; never returns."""
    app(prog_name="pkm")
