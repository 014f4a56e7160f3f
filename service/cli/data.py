"""`pkm data`: make the corpus that a job trains on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.output import JsonOption, data_only, messages, print_figures, print_json

data = typer.Typer(no_args_is_help=True, help="Prepare text for training.")


@data.command(
    epilog="Example: pkm data prepare examples/data/sotu.parquet --vocab-size 4096 --out examples/data/sotu"
)
def prepare(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILES...",
            help="Text: .txt, .jsonl, .jsonl.gz, .jsonl.zst or .parquet.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to make.", show_default=False)],
    vocab_size: Annotated[
        int | None, typer.Option(help="Tokens of the vocabulary to learn.", show_default=False)
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="CORPUS", help="Take the tokenizer of this corpus instead.", show_default=False),
    ] = None,
    text_column: Annotated[
        str, typer.Option(help="Column of the text in .parquet files, key in .jsonl files.")
    ] = "text",
    validation_share: Annotated[float, typer.Option(help="Share of the text for validation.")] = 0.02,
    test_share: Annotated[float, typer.Option(help="Share of the text for the final test.")] = 0.04,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that encode; by default one a core.", show_default=False),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Turn text into a corpus: a byte-pair tokenizer and the tokens of three splits.

    The last documents are held out, whole, for validation and test; the tokenizer learns from the rest.
    Preparing the same files with the same settings again does nothing; what was stopped or killed goes on.
    Text streams through, so files may be larger than memory.
    """
    from rich.progress import Progress as Bar

    from memory_store.errors import UsageError
    from workers.corpus import prepare_corpus

    if (vocab_size is None) == (tokenizer is None):
        raise UsageError(
            "Give either --vocab-size, to learn a tokenizer, or --tokenizer CORPUS, to take one."
        )

    console = messages()
    with data_only(), Bar(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=1.0)

        def show(phase: str, done: float) -> None:
            if phase != bar.tasks[task].description:
                console.print(phase, markup=False)
            bar.update(task, description=phase, completed=done)

        info = prepare_corpus(
            files,
            out,
            vocab_size=vocab_size,
            tokenizer_of=tokenizer,
            text_column=text_column,
            validation_share=validation_share,
            test_share=test_share,
            processes=processes,
            on_progress=show,
        )
    if json:
        print_json(info)
        return
    splits = {
        name: f"{split.tokens:,} tokens, {split.documents:,} documents" for name, split in info.splits.items()
    }
    print_figures({"corpus": str(out), "vocabulary": f"{info.vocabulary_size:,} tokens", **splits})
