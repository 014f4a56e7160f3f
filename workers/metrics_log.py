"""metrics.jsonl and revivals.jsonl, as the leading trainer writes them. A full disk stops no run: lines wait for room."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from pydantic import BaseModel

_log = logging.getLogger(__name__)


class MetricsLog:
    """Appends to the file at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: list[bytes] = []

    def append(self, record: BaseModel) -> None:
        """Add a line, and those that could not be written before."""
        self._waiting.append(record.model_dump_json(exclude_none=True).encode() + b"\n")
        try:
            with open(self._path, "ab", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                lines = b"".join(self._waiting)
                try:
                    complete = file.write(lines) == len(lines)
                except OSError:
                    complete = False
                if not complete:
                    file.truncate(size)  # never half a line
                    raise OSError(f"{len(lines)} bytes could not be written")
        except OSError as error:
            if len(self._waiting) == 1:
                _log.error("%s can't be written, the lines wait: %s", self._path, error)
        else:
            self._waiting.clear()
