"""Moving a running job to other numbers of shards and trainers, by way of a cut.

Who wants the move writes move.json into the run's folder. After its next step the leading trainer sees it: all trainers
write a cut and end. The driver starts as many shards and trainers as are wanted; they go on from that cut. Every step is
in the cut or comes after it, so none is lost or made twice. Until move.json is removed, which happens last, whoever
starts the job anew does it again from the same place.
"""

from __future__ import annotations

import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from memory_store.durable_files import replace_file
from memory_store.errors import StoreError, UsageError
from workers.events import read_events
from workers.job_spec import JobSpec
from workers.run_folder import RunFolder

_POLL_S = 0.2


class Move(BaseModel):
    """What is wanted: processes from the next cut on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shards: int
    trainers: int


class Pause(BaseModel):
    """The training stands at `step` since the time `begun`, for a move."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    begun: float


def moved(job: JobSpec, move: Move) -> JobSpec:
    """The job with other numbers of processes. Raises UsageError if it can't have them."""
    settings = job.model_dump(mode="json")
    settings["store"]["shards"], settings["train"]["trainers"] = move.shards, move.trainers
    try:
        return JobSpec.model_validate(settings)
    except ValidationError as error:
        reasons = "; ".join(detail["msg"] for detail in error.errors())
        raise UsageError(
            f"The job can't have {move.shards} shards and {move.trainers} trainers: {reasons}."
        ) from None


def wanted_move(run: RunFolder) -> Move | None:
    """The move that somebody waits for."""
    try:
        return Move.model_validate_json(run.move_path.read_bytes())
    except FileNotFoundError:
        return None


def ask_to_move(run: RunFolder, move: Move, timeout_s: float) -> float:
    """Have a running job moved, and return how many seconds its training has stood still for it.

    Raises UsageError if the job can't be moved there, StoreError if it has not been in time.
    """
    asked = begin_move(run, move)
    while time.time() < asked + timeout_s:
        pause = pause_of_move(run, asked)
        if pause is not None:
            return pause
        time.sleep(_POLL_S)
    raise StoreError(
        f"{run.path} has not moved within {timeout_s:g} s; it will as soon as it makes steps. See pkm train's output, "
        f"or remove {run.move_path} to leave it where it is."
    )


def begin_move(run: RunFolder, move: Move) -> float:
    """Want a running job to be moved; returns the time. Raises UsageError if the job can't be moved there."""
    job = run.load_job()
    if job.store.carrier == "in_process":
        raise UsageError(f"The job {job.name!r} has store.carrier in_process, and so no shards to move.")
    moved(job, move)
    asked = time.time()
    replace_file(run.move_path, move.model_dump_json().encode())
    return asked


def pause_of_move(run: RunFolder, asked: float) -> float | None:
    """For how many seconds the training stood still for the move that was asked for then; None as long as it is not done.

    Raises UsageError if the job was left where it was.
    """
    for event in read_events(run.events_path, asked):
        if event.kind == "reshard" and event.seconds is not None:
            return event.seconds
        if event.kind == "reshard":
            raise UsageError(event.message)
    if run.report_path.is_file() and run.report_path.stat().st_mtime > asked:
        run.move_path.unlink(missing_ok=True)
        raise UsageError("The job has come to its end before it could be moved.")
    return None


def begin_pause(path: Path, step: int) -> None:
    """The training stands still from now on."""
    replace_file(path, Pause(step=step, begun=time.time()).model_dump_json().encode())


def read_pause(path: Path) -> Pause | None:
    """Since when the training stands still, if it does."""
    try:
        return Pause.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
