"""`pkm eval`: perplexity and memory access of a trained model on held-out text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from service.cli.arguments import TrainedRun, trained_run
from service.cli.asking import OutputOption, ServerOption
from service.cli.output import JsonOption, data_only, print_figures, print_json, share

Split = Annotated[Literal["test", "validation"], typer.Option(help="Held-out text to read.")]


def evaluate(
    run: TrainedRun,
    split: Split = "test",
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="CORPUS",
            help="Text to read instead of the run's own, prepared with its tokenizer.",
            show_default=False,
        ),
    ] = None,
    server: ServerOption = None,
    output: OutputOption = "table",
    json: JsonOption = False,
) -> None:
    """Evaluate the last cut of a run on held-out text."""
    from workers.corpus import open_corpus
    from workers.evaluation import evaluate as evaluate_model
    from workers.trained_model import load_trained_model

    with data_only():
        trained = load_trained_model(trained_run(run, server))
        corpus = trained.corpus if data is None else open_corpus(data, tokenizer=trained.corpus.tokenizer)
        report = evaluate_model(trained.model, trained.store, corpus, trained.job, split)
    if json or output == "json":
        print_json(report)
        return
    figures = {f"{split} perplexity": f"{report.perplexity:.2f}", f"{split} tokens": f"{report.tokens:,}"}
    for table, access in report.memory.items():
        figures[f"{table}: usage"] = share(access.usage)
        figures[f"{table}: KL to uniform"] = f"{access.kl_to_uniform:.3f} nats"
        figures[f"{table}: top 1 % share"] = share(access.top1_share)
    print_figures(figures)
