"""What tests look at, and whom they kill, while a job runs."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import psutil

from workers.report import read_records


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(record.step, record.loss) for record in read_records(folder / "metrics.jsonl")]


def wait_for_steps(folder: Path, steps: int) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and len(read_records(folder / "metrics.jsonl")) < steps:
        time.sleep(0.05)


def processes_named(part: str) -> list[int]:
    """Those under this one whose command line has `part`; Ray gives its processes the names of their actors."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # ended meanwhile, its parent told of it or not yet
            if part in " ".join(child.cmdline()):
                found.append(child.pid)
    return found
