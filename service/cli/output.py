"""What commands print: data on standard output, everything else on standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the figures as JSON, and nothing else, on standard output.")
]


def messages() -> Console:
    """The console for everything that is not data."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@contextlib.contextmanager
def data_only() -> Iterator[None]:
    """Send what libraries print on standard output to standard error meanwhile."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def print_json(figures: object) -> None:
    """Print a pydantic model, a dataclass, or dicts and lists of them as JSON."""
    from pydantic_core import to_json

    typer.echo(to_json(figures, indent=2, inf_nan_mode="null").decode())


def print_figures(figures: Mapping[str, str]) -> None:
    """Print names and values in two columns."""
    width = max(map(len, figures))
    for name, value in figures.items():
        typer.echo(f"{name:<{width}}  {value}")


def share(part: float | None) -> str:
    """0.1234 as 12.3 %; a dense model has no such figure."""
    return "none (dense model)" if part is None else f"{part:.1%}".replace("%", " %")
