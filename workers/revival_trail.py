"""revivals.jsonl: each sub-key that was re-seeded, at which step and from which. What a stop has undone is not in it."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict


class RevivedKeys(BaseModel):
    """Dead sub-keys of one half of a memory head, and those from which they were re-seeded, one for each."""

    model_config = ConfigDict(frozen=True)

    layer: int
    head: int
    half: int
    sub_keys: list[int]
    donors: list[int]


class RevivalRecord(BaseModel):
    """What was re-seeded at the end of step `step`, counted from 1: sub-keys, and `rows` of `table` in their lines."""

    model_config = ConfigDict(frozen=True)

    step: int
    table: str
    rows: int
    revived: list[RevivedKeys]


def read_revivals(path: Path) -> list[RevivalRecord]:
    """All whole lines of revivals.jsonl, oldest first."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    return [RevivalRecord.model_validate_json(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def forget_revivals_after(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`: the run goes on from there, and will write them again."""
    records = read_revivals(path)
    kept = [record for record in records if record.step <= step]
    if len(kept) < len(records):
        path.write_text("".join(record.model_dump_json() + "\n" for record in kept), encoding="utf-8")
