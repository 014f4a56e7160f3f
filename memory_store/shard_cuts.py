"""A shard's part of the cuts: all its rows, or, where it has written them for an earlier cut, what was touched since.

A damaged file is damaged in all cuts that share it. So the first two cuts of a shard are of all rows, and `prune_cuts` keeps
one cut that shares nothing with the newest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from memory_store.bucket_files import link_files, write_buckets, write_delta
from memory_store.cuts import CutFile
from memory_store.table import TablePart

DELTAS_MAX = 8  # files to read one after the other; then all rows are written anew
DELTA_SHARE_MAX = 0.5
FULL_CUTS_MIN = 2


@dataclass(frozen=True)
class _Written:
    """The files of one table in the last cut of this shard, at version `step`; all rows were written at `full_step`."""

    folder: Path
    step: int
    files: tuple[CutFile, ...]
    full_step: int
    fulls: int  # cuts of all rows so far


class ShardCuts:
    """Remembers what one shard has written, for as long as its tables go on from there."""

    def __init__(self, shard: int) -> None:
        self._shard = shard
        self._written: dict[str, _Written] = {}

    def forget(self) -> None:
        """The tables were replaced: the next cut is of all rows."""
        self._written.clear()

    def write(self, folder: Path, parts: Iterable[TablePart], step: int) -> list[CutFile]:
        """Write the cut of version `step` into `folder`; its files, on the disk when this returns."""
        for part in parts:
            before = self._written.get(part.spec.name)
            self._written[part.spec.name] = self._touched(folder, part, step, before) or self._all(
                folder, part, step, before
            )
        return [entry for written in self._written.values() for entry in written.files]

    def _touched(self, folder: Path, part: TablePart, step: int, before: _Written | None) -> _Written | None:
        """What was touched since the cut before; None where all rows are better written, or must be."""
        if before is None or before.fulls < FULL_CUTS_MIN or len(before.files) > DELTAS_MAX:
            return None
        if part.rows_touched_since(before.full_step) > DELTA_SHARE_MAX * part.address_count:
            return None
        try:
            link_files(before.folder, folder, before.files)
        except OSError:
            return None  # no links here, or the older cut is gone
        delta = write_delta(folder, part, self._shard, before.step, step)
        return _Written(folder, step, (*before.files, delta), before.full_step, before.fulls)

    def _all(self, folder: Path, part: TablePart, step: int, before: _Written | None) -> _Written:
        for leftover in folder.glob(f"{part.spec.name}-shard-{self._shard:04d}*"):
            leftover.unlink()
        fulls = before.fulls + 1 if before is not None else 1
        return _Written(folder, step, (write_buckets(folder, part, self._shard),), step, fulls)
