"""A part of a table as it was at one version, read bucket by bucket while later steps change it.

Before a step changes rows that have not been read yet, they are copied. So a cut costs the steps beside it at most
one copy of a row, and the memory for rows that are changed before they are read.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from memory_store.errors import CutError
from memory_store.table import TablePart


class FrozenRows(NamedTuple):
    """Rows of one bucket: their positions in it, rising, and their columns in the order of `TablePart.columns`."""

    positions: NDArray[np.uint32]
    columns: list[NDArray[Any]]


class FrozenPart:
    """The rows of `part` that were touched after version `since` (None: all rows), as they are at `version`, which is now.

    Made, and ended, under the shard's `lock`; reading takes it. One at a time for a part.
    """

    def __init__(
        self, part: TablePart, version: int, lock: threading.Lock, *, since: int | None = None
    ) -> None:
        self.part, self.version, self.since = part, version, since
        self._lock = lock
        self._columns = [array for _, array in part.columns()]
        self._read_to = 0
        self._kept: list[tuple[NDArray[np.int64], list[NDArray[Any]]]] = []
        self._over = False
        part.before_update = self._keep

    def end(self) -> None:
        """Let the rows go; who still reads gets CutError. Under the lock."""
        self._over = True
        if self.part.before_update == self._keep:
            self.part.before_update = None
        self._kept.clear()

    def read(self, bucket: int) -> FrozenRows:
        """The rows of a bucket; buckets must be read in rising order. Raises CutError after `end`."""
        with self._lock:
            self._check()
            where = self.part.bucket_slice(bucket)
            positions = np.flatnonzero(self._wanted(self.part.last_step[where]))
            if positions.size == where.stop - where.start:
                columns = [array[where].copy() for array in self._columns]
            else:
                columns = [array[where][positions] for array in self._columns]
            rows = self._with_kept(where, positions, columns)
            self._read_to = where.start + self.part.capacity
            return rows

    def create(self, path: Path) -> pa.OSFile:
        """A new file at `path`, in place of what lies there, to write the rows to. Raises CutError after `end`."""
        with self._lock:
            self._check()
            path.unlink(missing_ok=True)  # not to be written through: it may be a link to an older cut's file
            return pa.OSFile(str(path), "wb")

    def _check(self) -> None:
        if self._over:
            raise CutError(f"The cut of version {self.version} was given up.")

    def _wanted(self, last_step: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Which of these rows are part of it and still as they were."""
        unchanged: NDArray[np.bool_] = last_step <= self.version
        return unchanged if self.since is None else unchanged & (last_step > self.since)

    def _keep(self, addresses: NDArray[np.uint32]) -> None:
        """These rows are about to be changed. Under the lock; addresses rising."""
        places = addresses.astype(np.int64) - self.part.first_address
        places = places[np.searchsorted(places, self._read_to) :]
        places = places[self._wanted(self.part.last_step[places])]
        if places.size:
            self._kept.append((places, [array[places] for array in self._columns]))

    def _with_kept(
        self, where: slice, positions: NDArray[np.int64], columns: list[NDArray[Any]]
    ) -> FrozenRows:
        parts = [(positions, columns)]
        for places, copies in self._kept:
            begin, end = np.searchsorted(places, [where.start, where.stop])
            if begin < end:
                parts.append((places[begin:end] - where.start, [copy[begin:end] for copy in copies]))
        if len(parts) > 1:
            positions = np.concatenate([part for part, _ in parts])
            order = np.argsort(positions)
            positions = positions[order]
            columns = [
                np.concatenate(arrays)[order] for arrays in zip(*(copies for _, copies in parts), strict=True)
            ]
        return FrozenRows(positions.astype(np.uint32), columns)
