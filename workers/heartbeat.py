"""Signs of life of a trainer: a small file, written anew every second as long as the process runs, that says how far it is.

How far a trainer is can be compared: by step, and in it by stage. Of several trainers that stand still the one that is
least far is the one for which the others wait; who waits for others is at the last stage.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

# After a step was committed, in this order; what begins then counts as the same step until its own commit.
STARTING, COMMITTED, EVALUATION, CUT = -1, 0, 1_000_000_000, 2_000_000_000
WAITING, BEGUN = 3_000_000_000, 4_000_000_000
_EVERY_S = 1.0

At = Callable[[int, int, str], None]  # a trainer gets on: step, stage, what it does now


def unnoticed(step: int, stage: int, doing: str) -> None:
    """For a trainer that nobody watches."""


class Beat(BaseModel):
    """One sign of life. `count` grows with each, `step` and `stage` when the trainer gets on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int
    process: int
    node: str
    count: int
    step: int
    stage: int
    doing: str

    @property
    def progress(self) -> tuple[int, int]:
        return self.step, self.stage


class Heartbeat:
    """The signs of life of this process in `folder`; `node` is the host's name in the cluster."""

    def __init__(self, folder: Path, rank: int, node: str) -> None:
        self._path = folder / f"trainer-{rank}.json"
        self._beat = Beat(
            rank=rank, process=os.getpid(), node=node, count=0, step=0, stage=STARTING, doing="the start"
        )
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def at(self, step: int, stage: int, doing: str) -> None:
        """The trainer begins with something new."""
        self._beat = self._beat.model_copy(update={"step": step, "stage": stage, "doing": doing})

    def stop(self) -> None:
        """The trainer has come to its end."""
        self._stopped.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        count = 0
        while not self._stopped.is_set():
            count += 1
            partial = self._path.with_suffix(f".{os.getpid()}")
            with suppress(OSError):  # a full disk; or the folder is gone with its job
                partial.write_text(self._beat.model_copy(update={"count": count}).model_dump_json())
                os.replace(partial, self._path)
            self._stopped.wait(_EVERY_S)


def read_beats(folder: Path) -> list[Beat]:
    """The last sign of life of every trainer that has given one, by rank."""
    beats = []
    for path in sorted(folder.glob("trainer-*.json")):
        with suppress(OSError, ValidationError):
            beats.append(Beat.model_validate_json(path.read_bytes()))
    return sorted(beats, key=lambda beat: beat.rank)
