"""`pkm inspect`: how a trained model uses the slots of its value tables."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.arguments import TrainedRun, trained_run
from service.cli.asking import OutputOption, ServerOption
from service.cli.evaluate import Split
from service.cli.output import JsonOption, data_only, print_figures, print_json, share

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from memory_store.statistics import AgeRange

SHADES = " .:-=+*#%@"
MAP_COLUMNS, MAP_LINES = 64, 32  # a character is about twice as high as it is wide


def inspect(
    run: TrainedRun,
    split: Split = "validation",
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Draw the access map as a picture.", show_default=False),
    ] = None,
    server: ServerOption = None,
    output: OutputOption = "table",
    json: JsonOption = False,
) -> None:
    """Show usage, KL to uniform, dead slots and the access map of the last cut of a run."""
    from memory_store.errors import UsageError

    if picture and picture.suffix.lower() != ".png":
        raise UsageError(
            f"The picture can't be '{picture}': it is written as PNG; give a name that ends in .png."
        )
    from workers.inspection import draw_inspection, inspect_run

    with data_only():
        inspection = inspect_run(trained_run(run, server), split)
        pictures = draw_inspection(inspection, picture) if picture else []
    if json or output == "json":
        tables = {
            table.name: asdict(table.access)
            | {"dead_slots": table.access.dead_slots, "ages": [asdict(age) for age in table.ages]}
            for table in inspection.tables
        }
        print_json({"split": split, "step": inspection.step, "tables": tables, "pictures": pictures})
        return
    for table in inspection.tables:
        access = table.access
        figures = {
            "table": table.name,
            "slots": f"{access.rows:,}",
            "usage": share(access.usage),
            "dead slots": f"{access.dead_slots:,}",
            "KL to uniform": f"{access.kl_to_uniform:.3f} nats",
            "top 1 % share": share(access.top1_share),
        }
        print_figures(figures | age_figures(table.ages))
        typer.echo(
            f"\nAccess on the {split} text: first sub-key down, second across; '{SHADES}' on a log scale"
        )
        typer.echo("\n".join(coarse_map(table.access_map)) + "\n")
    for path in pictures:
        typer.echo(f"Drew {path}", err=True)


def age_figures(ages: list[AgeRange]) -> dict[str, str]:
    """Slots by the steps since their last update: a line for each range."""
    names = {
        age.steps: "never updated" if age.steps is None else f"updated {age.steps:,} steps ago"
        for age in ages
    }
    return {names[age.steps]: f"{age.rows:,}" for age in ages}


def coarse_map(weights: NDArray[Any]) -> list[str]:
    """A map of access weights `[P, P]` as lines of characters, each for the mean of a block, on a log scale.

    The lightest shade stands for at most a thousandth of the heaviest block; a blank for no access at all.
    """
    import numpy as np

    lines = np.array_split(weights, min(len(weights), MAP_LINES))
    blocks = [np.array_split(line, min(line.shape[1], MAP_COLUMNS), axis=1) for line in lines]
    means = np.array([[block.mean() for block in line] for line in blocks])
    shares = means / (means.max() or 1.0)
    level = 1 + np.log(np.maximum(shares, 1e-3)) / np.log(1e3)  # 0 at a thousandth, 1 at the heaviest
    darkest = len(SHADES) - 1
    shades = np.where(shares > 0, np.maximum(np.rint(level * darkest), 1), 0).astype(int)
    return ["".join(SHADES[shade] for shade in line) for line in shades]
