"""What the doctor says: of each thing looked at, whether it is well, and if not, what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["well", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """`note` works, but could be better; `wrong` does not work. `advice` says what to do; empty where all is well."""

    check: str
    level: Level
    found: str
    advice: str = ""


def well(check: str, found: str) -> Finding:
    return Finding(check, "well", found)


def note(check: str, found: str, advice: str) -> Finding:
    return Finding(check, "note", found, advice)


def wrong(check: str, found: str, advice: str) -> Finding:
    return Finding(check, "wrong", found, advice)
