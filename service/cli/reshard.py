"""`pkm reshard`: give a running job other numbers of shards and trainers."""

from __future__ import annotations

from typing import Annotated

import typer

from service.cli.arguments import RunFolderPath
from service.cli.output import JsonOption, print_figures, print_json


def reshard(
    run: RunFolderPath,
    shards: Annotated[
        int | None,
        typer.Option(min=1, help="Shards to go on with; as many as now unless given.", show_default=False),
    ] = None,
    trainers: Annotated[
        int | None,
        typer.Option(min=1, help="Trainers to go on with; as many as now unless given.", show_default=False),
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait until it has moved.")] = 600.0,
    json: JsonOption = False,
) -> None:
    """Move a running job to other numbers of shards and trainers, and wait until it trains there."""
    from memory_store.errors import UsageError
    from workers.move import Move, ask_to_move
    from workers.run_folder import RunFolder
    from workers.supervisor import is_being_trained

    folder = RunFolder(run)
    job = folder.load_job()
    if shards is None and trainers is None:
        raise UsageError("Say where to: --shards N, --trainers N, or both.")
    if not is_being_trained(folder):
        raise UsageError(
            f"{folder.path} is not being trained on this machine; go on with it on other shards with: "
            f"pkm train --resume {folder.path} --set store.shards=N"
        )
    move = Move(shards=shards or job.store.shards, trainers=trainers or job.train.trainers)
    pause = ask_to_move(folder, move, timeout)
    if json:
        print_json({"shards": move.shards, "trainers": move.trainers, "pause_seconds": round(pause, 3)})
    else:
        print_figures(
            {
                "shards": str(move.shards),
                "trainers": str(move.trainers),
                "training stood still": f"{pause:.1f} s",
            }
        )
