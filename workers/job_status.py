"""What the process of a job tells a service: how far it is, and how it ended. Files in the run's folder.

Each names the attempt that it is of: what an earlier start of the job has left behind says nothing of this one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from memory_store.durable_files import replace_file
from workers.report import Progress

_STATUS, _OUTCOME = "status.json", "outcome.json"


class Status(BaseModel):
    """How far the job is, in its start number `attempt`."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    attempt: int
    progress: Progress


class Outcome(BaseModel):
    """How the job has ended. `halted` is by request, after a cut; `message` is for people."""

    model_config = ConfigDict(frozen=True)

    attempt: int
    kind: Literal["succeeded", "failed", "halted"]
    message: str


_Told = TypeVar("_Told", Status, Outcome)


def tell_status(run: Path, status: Status) -> None:
    replace_file(run / _STATUS, status.model_dump_json().encode())


def tell_outcome(run: Path, outcome: Outcome) -> None:
    replace_file(run / _OUTCOME, outcome.model_dump_json().encode())


def read_status(run: Path, attempt: int) -> Status | None:
    """What this attempt has told; None if nothing yet."""
    return _read(run / _STATUS, Status, attempt)


def read_outcome(run: Path, attempt: int) -> Outcome | None:
    """How this attempt has ended; None if it has not, or could not say."""
    return _read(run / _OUTCOME, Outcome, attempt)


def _read(path: Path, kind: type[_Told], attempt: int) -> _Told | None:
    try:
        told = kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    return told if told.attempt == attempt else None
