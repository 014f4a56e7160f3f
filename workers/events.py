"""What happens to a run besides its steps: restarts, cuts that failed, moves to other shards. One line each in events.jsonl.

Written by the driver, its supervisor and the leading trainer; a line is appended at once, so that they don't mix.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

EventKind = Literal["restart", "cut_failed", "steps_skipped", "silent", "reshard", "revival"]

_log = logging.getLogger(__name__)


class Event(BaseModel):
    """`time` in seconds since 1970; `step` is the last that was finished, `seconds` what it has cost, where that is known."""

    model_config = ConfigDict(frozen=True)

    time: float
    kind: EventKind
    step: int
    message: str
    seconds: float | None = None


def tell(path: Path, kind: EventKind, step: int, message: str, seconds: float | None = None) -> None:
    """Add an event that happens now; a disk that does not take it is no reason to stop."""
    event = Event(time=time.time(), kind=kind, step=step, message=message, seconds=seconds)
    _log.warning("step %d: %s", step, message)
    try:
        with open(path, "ab", buffering=0) as file:
            file.write(event.model_dump_json(exclude_none=True).encode() + b"\n")
    except OSError as error:
        _log.error("%s can't be written: %s", path, error)


def read_events(path: Path, since: float = 0.0) -> list[Event]:
    """All whole lines of events.jsonl from the time `since` on, oldest first."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [event for event in map(Event.model_validate_json, lines) if event.time >= since]


def count_events(path: Path, kind: EventKind, since: float = 0.0) -> int:
    """How often something has happened from the time `since` on."""
    return sum(event.kind == kind for event in read_events(path, since))
