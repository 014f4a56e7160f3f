"""A shard's part of the cuts: all its rows, or, where it has written them for an earlier cut, what was touched since.

A cut is of the version at which it begins. It is written by a thread of its own while steps go on (frozen_part.py).

A damaged file is damaged in all cuts that share it. So the first two cuts of a shard are of all rows, and `prune_cuts` keeps
one cut that shares nothing with the newest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from memory_store.bucket_files import link_files, write_buckets, write_delta
from memory_store.cuts import CutFile
from memory_store.durable_files import sync_folder
from memory_store.errors import PkmError, StoreError
from memory_store.frozen_part import FrozenPart
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


class ShardCut:
    """One cut of a shard. `outcome` is its files, or why there are none; it has none while it is written, or if it was
    given up."""

    def __init__(self, folder: Path, step: int, number: int) -> None:
        self.folder, self.step, self.number = folder, step, number
        self.frozen: list[FrozenPart] = []
        self.outcome: list[CutFile] | PkmError | None = None


class ShardCuts:
    """Writes the cuts of one shard, one at a time. `lock` is the shard's; public methods are called under it.

    `on_end(cut)` is called, by a thread that has not the lock, when nothing more is written for a cut.
    """

    def __init__(
        self, shard: int, incarnation: str, lock: threading.Lock, on_end: Callable[[ShardCut], None]
    ) -> None:
        self._shard = shard
        self._writer = f"{shard:04d}-{incarnation[:8]}".rstrip("-")
        self._lock = lock
        self._on_end = on_end
        self._written: dict[str, _Written] = {}
        self.newest: ShardCut | None = None

    def forget(self) -> None:
        """The tables are being replaced: what is being written is given up, and the next cut is of all rows."""
        self._give_up()
        self._written.clear()

    def begin(self, folder: Path, parts: Iterable[TablePart], step: int, number: int) -> ShardCut:
        """Begin the cut of the tables as they are now, at version `step`, in `folder`; an older one under way is given up.

        `number` is the writer's, rising.
        """
        self._give_up()
        cut = self.newest = ShardCut(folder, step, number)
        for part in parts:
            before = self._written.get(part.spec.name)
            since = before.step if before is not None and self._continues(cut, part, before) else None
            cut.frozen.append(FrozenPart(part, step, self._lock, since=since))
        threading.Thread(target=self._write, args=(cut,), name="cut", daemon=True).start()
        return cut

    def _give_up(self) -> None:
        if self.newest is not None:
            for frozen in self.newest.frozen:
                frozen.end()
            self.newest = None

    @staticmethod
    def _continues(cut: ShardCut, part: TablePart, before: _Written) -> bool:
        """Whether the files of the cut before are this one's too, so that only what was touched since is to be written."""
        if before.fulls < FULL_CUTS_MIN or len(before.files) > DELTAS_MAX:
            return False
        if part.rows_touched_since(before.full_step) > DELTA_SHARE_MAX * part.address_count:
            return False
        try:
            link_files(before.folder, cut.folder, before.files)
        except OSError:
            return False  # no links here, or the older cut is gone
        return True

    # ---- the cut's thread --------------------------------------------------------------------------------------

    def _write(self, cut: ShardCut) -> None:
        written: dict[str, _Written] = {}
        outcome: list[CutFile] | PkmError
        try:
            for frozen in cut.frozen:
                name = frozen.part.spec.name
                written[name] = self._write_table(cut.folder, frozen, self._written.get(name))
            sync_folder(cut.folder)
            outcome = [entry for each in written.values() for entry in each.files]
        except PkmError as error:
            outcome = error
        except OSError as error:
            outcome = StoreError(f"Shard {self._shard} could not write the cut of step {cut.step}: {error}.")
        with self._lock:
            for frozen in cut.frozen:
                frozen.end()
            if cut is self.newest:
                cut.outcome = outcome
                if isinstance(outcome, list):
                    self._written = written
        self._on_end(cut)

    def _write_table(self, folder: Path, frozen: FrozenPart, before: _Written | None) -> _Written:
        if frozen.since is not None and before is not None:
            files = (*before.files, write_delta(folder, frozen, self._writer))
            return _Written(folder, frozen.version, files, before.full_step, before.fulls)
        fulls = before.fulls + 1 if before is not None else 1
        entry = write_buckets(folder, frozen, self._writer)
        return _Written(folder, frozen.version, (entry,), frozen.version, fulls)
