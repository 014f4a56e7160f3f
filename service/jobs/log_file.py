"""Reading the log of a job in parts, from any place on."""

from __future__ import annotations

import os
from pathlib import Path

PART_BYTES = 256 << 10
_TAIL_BYTES_MAX = 1 << 20


def read_log(path: Path, offset: int) -> bytes:
    """The next part from `offset` on; empty at the end, or if there is no log yet."""
    try:
        with open(path, "rb") as file:
            return os.pread(file.fileno(), PART_BYTES, offset)
    except FileNotFoundError:
        return b""


def offset_of_tail(path: Path, lines: int) -> int:
    """Where the last `lines` lines begin, of those in the last MiB."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            begin = max(0, size - _TAIL_BYTES_MAX)
            text = os.pread(file.fileno(), _TAIL_BYTES_MAX, begin)
    except FileNotFoundError:
        return 0
    ends = [place + 1 for place, letter in enumerate(text[:-1]) if letter == 0x0A]
    if lines == 0:
        return size
    return begin + (ends[-lines] if lines <= len(ends) else 0)
