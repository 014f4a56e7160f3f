"""Stopping a job that runs, after a cut from which it could go on: to rest, or for good.

Who wants that writes halt.json into the run's folder; after its next step the leading trainer sees it, all write a cut,
and the driver ends. The file is removed by whoever starts the job again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from memory_store.durable_files import replace_file

Purpose = Literal["pause", "cancel"]


class Halt(BaseModel):
    """Why the job is to stop. A job that is to pause goes on if its cut can't be written; a cancelled one ends anyway."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    purpose: Purpose


def ask_to_halt(path: Path, purpose: Purpose) -> None:
    """Want a job to stop; `path` is the halt_path of its run."""
    replace_file(path, Halt(purpose=purpose).model_dump_json().encode())


def wanted_halt(path: Path) -> Halt | None:
    """What is wanted of the job, if it is to stop."""
    try:
        return Halt.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
