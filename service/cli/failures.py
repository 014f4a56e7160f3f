"""How every command ends when it can't do its work: one sentence on standard error, and an exit code for
scripts."""

from __future__ import annotations

import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

FAILED, USAGE, UNREACHABLE, NOT_ALLOWED, NO_SUCH_JOB, INTERRUPTED = 1, 2, 3, 4, 102, 130


class CommandGroup(TyperGroup):
    """The outermost group of commands: the one place where errors become messages and exit codes."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]  # typer keeps the base's type private
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("Stopped.", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except (typer.Exit, typer.Abort, typer.TyperException, BrokenPipeError):
            raise  # typer ends these itself: help, --version, arguments it refuses, a closed pipe
        except Exception as error:
            raise typer.Exit(_report(error, debug=bool(ctx.params.get("debug")))) from error


def _report(error: Exception, debug: bool) -> int:
    """Print the failure and give its exit code."""
    # Imported late: most commands end well.
    from memory_store.errors import PkmError, UsageError
    from service.jobs.errors import JobConflictError, NoSuchJobError, NotAllowedError, ServerUnreachableError

    if debug:
        traceback.print_exception(error, file=sys.stderr)
    for kind, code in (
        (NoSuchJobError, NO_SUCH_JOB),
        (NotAllowedError, NOT_ALLOWED),
        (ServerUnreachableError, UNREACHABLE),
    ):
        if isinstance(error, kind):
            typer.echo(f"Error: {error}", err=True)
            return code
    if isinstance(error, UsageError | JobConflictError):
        typer.echo(f"Error: {error}" if "\n" not in str(error) else f"Errors:\n{error}", err=True)
        return USAGE
    what = str(error) if isinstance(error, PkmError) else f"{type(error).__name__}: {error}"
    hint = "" if debug else "\nRepeat the command as `pkm --debug ...` to see the trace."
    typer.echo(f"Error: {what}{hint}", err=True)
    return FAILED
