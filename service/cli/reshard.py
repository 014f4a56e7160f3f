"""`pkm reshard`: give a running job other numbers of shards and trainers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.arguments import TrainedRun, names_job
from service.cli.asking import OutputOption, ServerOption, ask
from service.cli.output import JsonOption, print_figures, print_json

if TYPE_CHECKING:
    from service.client import Moved


def reshard(
    run: TrainedRun,
    shards: Annotated[
        int | None,
        typer.Option(min=1, help="Shards to go on with; as many as now unless given.", show_default=False),
    ] = None,
    trainers: Annotated[
        int | None,
        typer.Option(min=1, help="Trainers to go on with; as many as now unless given.", show_default=False),
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait until it has moved.")] = 600.0,
    server: ServerOption = None,
    output: OutputOption = "table",
    json: JsonOption = False,
) -> None:
    """Move a running job to other numbers of shards and trainers, and wait until it trains there."""
    from memory_store.errors import UsageError

    if shards is None and trainers is None:
        raise UsageError("Say where to: --shards N, --trainers N, or both.")
    if not run.exists() and names_job(run):
        with ask(server) as client:
            moved = client.reshard(str(run), shards, trainers, timeout)
    else:
        moved = _move_here(run, shards, trainers, timeout)
    if json or output == "json":
        print_json(moved)
    else:
        print_figures(
            {
                "shards": str(moved.shards),
                "trainers": str(moved.trainers),
                "training stood still": f"{moved.pause_seconds:.1f} s",
            }
        )


def _move_here(path: Path, shards: int | None, trainers: int | None, timeout_s: float) -> Moved:
    """Move a run that `pkm train` trains on this machine."""
    from memory_store.errors import UsageError
    from service.client import Moved
    from workers.move import Move, ask_to_move
    from workers.run_folder import RunFolder
    from workers.supervisor import is_being_trained

    folder = RunFolder(path)
    job = folder.load_job()
    if not is_being_trained(folder):
        raise UsageError(
            f"{folder.path} is not being trained on this machine; go on with it on other shards with: "
            f"pkm train --resume {folder.path} --set store.shards=N"
        )
    move = Move(shards=shards or job.store.shards, trainers=trainers or job.train.trainers)
    return Moved(move.shards, move.trainers, round(ask_to_move(folder, move, timeout_s), 3))
