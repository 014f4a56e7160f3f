"""training-map.arrow: which slots the training reads now, by pair of sub-keys, for those who watch the run.

The leading trainer counts the rows that its own memory layers select, of at most TOKENS_MAX tokens of a forward pass, over
the last WINDOW_STEPS / 2 to WINDOW_STEPS steps. The shards are asked nothing, and what is counted goes nowhere but into
the file: the training computes the same bytes with it and without.

The file is an Arrow IPC file with one column, a line of pixels a row, and the other fields of `RecentMap` in its schema's
metadata. It is replaced in one step, so that a reader never sees half a map. A disk that does not take it stops nothing.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from memory_store.calls import Waiting

if TYPE_CHECKING:
    from torch import Tensor

    from workers.memory_layer import MemoryLayer

WINDOW_STEPS = 100
TOKENS_MAX = 2048
SIDE_MAX = 1024
_EVERY_S = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecentMap:
    """Reads of slots in the steps after `since` up to `step`: uint32 `[P, P]`, P <= `sub_keys`, first sub-key down."""

    since: int
    step: int
    sub_keys: int
    counts: NDArray[np.uint32]


class TrainingMap:
    """Counts what `layers` select while they train, from `step` on; the map in `path` is never much older than seconds."""

    def __init__(
        self,
        path: Path,
        layers: Iterable[MemoryLayer],
        sub_keys: int,
        step: int,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._sub_keys, self._now = path, sub_keys, now
        self._side = min(sub_keys, SIDE_MAX)
        self._since, self._half_since = step, step
        self._half, self._before = self._empty(), self._empty()
        # Of the step under way.
        self._selected: list[Waiting[Sequence[NDArray[np.int64]]]] = []
        self._written = now()
        self._failed = False
        for layer in layers:
            layer.on_select = self.count

    def count(self, rows: Tensor) -> None:
        """Count the rows that a layer has selected, int64 `[T, heads, k]`."""
        from workers.gpu.transfers import transfers

        stride = max(1, -(-rows.shape[0] // TOKENS_MAX))
        self._selected.append(transfers(rows.device).to_host(rows[::stride]))

    def _add(self, rows: NDArray[np.int64]) -> None:
        chosen = rows.ravel()
        if self._side != self._sub_keys:
            first, second = np.divmod(chosen, self._sub_keys)
            first, second = first * self._side // self._sub_keys, second * self._side // self._sub_keys
            chosen = first * self._side + second
        self._half += np.bincount(chosen, minlength=self._half.size).astype(np.uint32)

    def end_of_step(self, step: int, *, last: bool = False) -> None:
        """`step` steps are finished: write the map if it is time, and forget what is older than the window."""
        for on_host in self._selected:
            self._add(*on_host())
        self._selected = []
        if last or self._now() >= self._written + _EVERY_S:
            self._write(step)
        if step >= self._half_since + WINDOW_STEPS // 2:
            self._before, self._half = self._half, self._empty()
            self._since, self._half_since = self._half_since, step

    def _write(self, step: int) -> None:
        self._written = self._now()
        counts = (self._before + self._half).reshape(self._side, self._side)
        try:
            save_map(self._path, RecentMap(self._since, step, self._sub_keys, counts))
        except OSError as error:
            if not self._failed:
                _log.error("%s can't be written, the training goes on: %s", self._path, error)
            self._failed = True

    def _empty(self) -> NDArray[np.uint32]:
        return np.zeros(self._side * self._side, dtype=np.uint32)


def save_map(path: Path, recent: RecentMap) -> None:
    """Replace the file by this map. Not forced to the disk: the next one comes in seconds."""
    side = recent.counts.shape[0]
    lines = pa.FixedSizeListArray.from_arrays(pa.array(recent.counts.reshape(-1)), side)
    figures = {"since": recent.since, "step": recent.step, "sub_keys": recent.sub_keys}
    schema = pa.schema(
        [("reads", lines.type)], metadata={name: str(value) for name, value in figures.items()}
    )
    partial = path.with_name(path.name + ".partial")
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch([lines], schema=schema))
    os.replace(partial, path)


def load_map(path: Path) -> RecentMap | None:
    """The map in a file; None if there is none, or if a crash of the host has left it damaged."""
    try:
        content = path.read_bytes()  # and not mapped: it may be replaced meanwhile
        with pa.ipc.open_file(pa.BufferReader(content)) as reader:
            figures = {name.decode(): int(value) for name, value in (reader.schema.metadata or {}).items()}
            column = reader.get_batch(0).column("reads")
            counts = column.flatten().to_numpy().reshape(len(column), -1)
            return RecentMap(**figures, counts=counts)
    except (FileNotFoundError, pa.ArrowInvalid, KeyError, ValueError, TypeError):
        return None
