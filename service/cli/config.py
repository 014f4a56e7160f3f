"""`pkm config`: what a job file means, and the schema behind it."""

from __future__ import annotations

from functools import reduce
from operator import getitem

import typer

from service.cli.arguments import JobFile, Overrides
from service.cli.output import JsonOption, print_json

config = typer.Typer(no_args_is_help=True, help="Explain job files.")


@config.command(epilog="Example: pkm config show examples/quickstart.yaml --set train.lr=3e-4")
def show(job_file: JobFile, overrides: Overrides = None, json: JsonOption = False) -> None:
    """Print every setting of a job, with its value and its origin: default, file and line, or --set."""
    from pydantic_core import to_json

    from service.job_file import load_job

    loaded = load_job(job_file, overrides or ())
    job = loaded.job.model_dump(mode="json")
    values = {path: reduce(getitem, path.split("."), job) for path in loaded.origins}
    if json:
        print_json(
            {path: {"value": values[path], "origin": origin} for path, origin in loaded.origins.items()}
        )
        return
    path_width = max(map(len, values))
    shown = {path: to_json(value).decode().strip('"') for path, value in values.items()}
    value_width = max(map(len, shown.values()))
    for path, origin in loaded.origins.items():
        typer.echo(f"{path:<{path_width}}  {shown[path]:<{value_width}}  {origin}")


@config.command(epilog="Example: pkm config schema > docs/job.schema.json")
def schema() -> None:
    """Print the JSON Schema of job files, with which editors complete and check them."""
    from workers.job_spec import JobSpec

    print_json(JobSpec.model_json_schema())
