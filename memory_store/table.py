"""One shard's part of one table: values, optimizer state, last touched step, access statistics.

All arrays are indexed by `address - first_address` and lie in the shard's arenas. The part knows how to read
and update its rows; steps, writers and versions are shard.py's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memory_store.arena import Arena, padded
from memory_store.initialization import clear, fill_normal
from memory_store.kernels import FloatArray, gather_rows, pool_rows
from memory_store.log_records import LoggedStep
from memory_store.optimizers import Contributions, RowState, update_rows
from memory_store.placement import BUCKETS, Placement, bucket_capacity, bucket_rows, rows_of
from memory_store.reused_memory import empty
from memory_store.table_spec import TableSpec
from memory_store.value_types import to_bfloat16

PROCESS_BYTES = 400 << 20  # of a shard's process besides its tables: interpreter, Ray, Arrow and the kernels
_INITIALISE_ROWS = 1 << 16
STATE_SHIFT = 1344  # a third of a page, in whole cache lines


class _Array(NamedTuple):
    """An array of a part: its shape and type, and how many bytes behind the begin of a page it starts.

    An update goes through a row's values and its two states side by side. Were their addresses equal modulo 4096, the
    processor would take a load from one for the store to another just before it, and wait.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    shift: int = 0

    @property
    def size_bytes(self) -> int:
        return padded(self.shift + int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize)


def _arrays(spec: TableSpec, addresses: int) -> list[_Array]:
    """A part's arrays, in arena order. The values start a page: trainers on the same host map them."""
    first, second = spec.optimizer.state_widths(spec.dim)
    return [
        _Array((addresses, spec.dim), spec.storage_dtype),
        _Array((addresses, first), spec.compute_dtype, STATE_SHIFT),
        _Array((addresses, second), spec.compute_dtype, 2 * STATE_SHIFT),
        _Array((addresses,), np.dtype(np.uint32)),
        _Array((addresses,), np.dtype(np.uint32)),
        _Array((addresses,), np.dtype(np.float32)),
    ]


class PartBytes(NamedTuple):
    """Bytes of arena that one shard's part of a table takes: its values, and all that belongs to them."""

    values: int
    state: int


def part_bytes(spec: TableSpec, placement: Placement, shard: int) -> PartBytes:
    """See PartBytes."""
    addresses = len(placement.buckets(shard)) * bucket_capacity(spec.rows)
    values, *state = (array.size_bytes for array in _arrays(spec, addresses))
    return PartBytes(values, sum(state))


class TablePart:
    """The rows of `spec` whose buckets `placement` gives to `shard`; values and state may lie in one arena."""

    def __init__(
        self, spec: TableSpec, placement: Placement, shard: int, values_arena: Arena, state_arena: Arena
    ) -> None:
        self.spec = spec
        self.buckets = placement.buckets(shard)
        self.capacity = bucket_capacity(spec.rows)
        self.first_address = self.buckets.start * self.capacity
        self.address_count = len(self.buckets) * self.capacity
        values, *state = _arrays(spec, self.address_count)
        arrays = [
            arena.allocate(array.shape, array.dtype, shift=array.shift)
            for arena, array in [(values_arena, values), *((state_arena, array) for array in state)]
        ]
        self.values: NDArray[Any] = arrays[0]
        self.first_state: NDArray[Any] = arrays[1]
        self.second_state: NDArray[Any] = arrays[2]
        self.last_step: NDArray[np.uint32] = arrays[3].view(np.uint32)
        self.accesses: NDArray[np.uint32] = arrays[4].view(np.uint32)
        self.weight_sums: NDArray[np.float32] = arrays[5].view(np.float32)
        # Told which rows are about to be changed, while somebody reads the part as it was (frozen_part.py).
        self.before_update: Callable[[NDArray[np.uint32]], None] | None = None
        self.timed: Callable[[], AbstractContextManager[object]] = nullcontext  # round the row optimizer

    def columns(self) -> list[tuple[str, NDArray[Any]]]:
        """What a row consists of, by name: the arrays that a cut keeps, without those that the optimizer has no use for."""
        arrays = [
            ("values", self.values),
            ("first_state", self.first_state),
            ("second_state", self.second_state),
        ]
        return [(name, array) for name, array in arrays if array.shape[1]] + [("last_step", self.last_step)]

    def initialise(self) -> None:
        """Write the first values and clear all state; the same rows get the same values on any number of
        shards.
        """
        for begin in range(0, self.address_count, _INITIALISE_ROWS):
            end = min(self.address_count, begin + _INITIALISE_ROWS)
            addresses = np.arange(self.first_address + begin, self.first_address + end).astype(np.uint32)
            fill_normal(
                self.values[begin:end], rows_of(addresses, self.spec.rows), self.spec.seed, self.spec.std
            )
        for state in (self.first_state, self.second_state, self.last_step):
            clear(state.reshape(-1))
        self.clear_accesses()

    def bucket_slice(self, bucket: int) -> slice:
        """Where the rows of `bucket` lie in the arrays (only the rows that exist)."""
        begin = (bucket - self.buckets.start) * self.capacity
        return slice(begin, begin + bucket_rows(self.spec.rows, bucket))

    def owns(self, addresses: NDArray[np.uint32]) -> bool:
        """Whether all `addresses` belong to this part and to rows that exist."""
        if addresses.size == 0:
            return True
        low, high = int(addresses.min()), int(addresses.max())
        if low < self.first_address or high >= self.first_address + self.address_count:
            return False
        if self.spec.rows % BUCKETS == 0:
            return True
        bucket, position = np.divmod(addresses.astype(np.int64), self.capacity)
        return bool((position * BUCKETS + bucket < self.spec.rows).all())

    def fetch(self, addresses: NDArray[np.uint32]) -> FloatArray:
        """The values of rows: `[U, D]`."""
        out = empty((addresses.size, self.spec.dim), self.spec.compute_dtype)
        gather_rows(self.values, self.first_address, addresses, out)
        return out

    def pool(
        self, offsets: NDArray[np.int32], addresses: NDArray[np.uint32], weights: FloatArray
    ) -> FloatArray:
        """The weighted sums of rows: `[T, D]`; token t has the entries offsets[t] to offsets[t + 1]."""
        out = empty((offsets.size - 1, self.spec.dim), self.spec.compute_dtype)
        pool_rows(self.values, self.first_address, offsets, addresses, weights, out)
        return out

    def update(self, contributions: Contributions, *, step: int, learning_rate: float, scale: float) -> None:
        """Apply the row optimizer once to every row that has a contribution."""
        if self.before_update is not None:
            self.before_update(contributions.addresses)
        state = RowState(self.values, self.first_state, self.second_state, self.last_step)
        with self.timed():
            update_rows(
                self.spec.optimizer,
                state,
                self.first_address,
                contributions,
                step=step,
                learning_rate=learning_rate,
                scale=scale,
                seed=self.spec.seed,
            )

    def replace(self, addresses: NDArray[np.uint32], values: FloatArray, *, step: int) -> None:
        """Put `values` `[U, D]` in the place of distinct rows; their optimizer state starts anew."""
        if self.before_update is not None:
            self.before_update(np.sort(addresses))
        places = addresses.astype(np.int64) - self.first_address
        self.values[places] = to_bfloat16(values) if self.spec.dtype == "bfloat16" else values
        self.first_state[places] = 0
        self.second_state[places] = 0
        self.last_step[places] = step

    def rows_touched_since(self, step: int) -> int:
        """Rows that an update has touched after version `step`."""
        return int((self.last_step > step).sum())

    def clear_accesses(self) -> None:
        self.accesses.fill(0)
        self.weight_sums.fill(0)


def apply_step(tables: Mapping[str, TablePart], step: LoggedStep) -> None:
    """Update and replace rows as `step` says, which is the one after the tables' version."""
    for update in step.updates:
        tables[update.table].update(
            update.contributions, step=step.step + 1, learning_rate=update.learning_rate, scale=update.scale
        )
    for replaced in step.replacements:
        tables[replaced.table].replace(replaced.addresses, replaced.values, step=step.step + 1)


def allocated(
    specs: Sequence[TableSpec], placement: Placement, shard: int, *, shared: bool
) -> tuple[Arena, dict[str, TablePart]]:
    """A shard's parts of all tables, zeros, by name; and the arena of their values, which other processes may map."""
    sizes = [part_bytes(spec, placement, shard) for spec in specs]
    # Trainers read the values alone: the rest needn't be shared, and private memory comes in larger pages.
    values = Arena(sum(size.values for size in sizes), shared=shared)
    state = Arena(sum(size.state for size in sizes))
    return values, {spec.name: TablePart(spec, placement, shard, values, state) for spec in specs}
