"""`pkm generate`: sample text from a trained model."""

from __future__ import annotations

from typing import Annotated

import typer

from service.cli.arguments import TrainedRun, trained_run
from service.cli.asking import ServerOption
from service.cli.output import data_only


def generate(
    run: TrainedRun,
    prompt: Annotated[str, typer.Option(help="Text to go on from.", show_default=False)],
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 100,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Sample from the k likeliest tokens; 0: from all.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same text.")] = 0,
    server: ServerOption = None,
) -> None:
    """Print the prompt and go on with text sampled from the last cut of a run."""
    from workers.generation import generate as generate_text

    with data_only():
        pieces = iter(generate_text(trained_run(run, server), prompt, tokens, temperature, top_k, seed))
        first = next(pieces, "")  # loads the model, so that a failure comes before any output
    typer.echo(prompt + first, nl=False)
    for piece in pieces:
        typer.echo(piece, nl=False)
    typer.echo()
