"""Processes that a killed driver has left behind: they must not write into the run when its successor does.

A driver's processes inherit a mark in their environment. Ray ends its processes when the driver dies, but not at once.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

MARK = "PKM_RUN"
_PAUSE_S = 0.05


def end_leftovers(run: Path) -> None:
    """Kill all processes of this host that belong to the run's driver; returns when they are gone."""
    while left := _marked(run):
        for process in left:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(_PAUSE_S)


def _marked(run: Path) -> list[int]:
    mark = f"{MARK}={run}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended, or is another user's
        # What has ended but was not waited for has no environment.
        if mark in environment:
            found.append(int(entry.name))
    return found
