"""A table in host shards, with a copy of its hottest rows on the trainer's device.

A lookup fetches only the rows that have no fresh copy; rows are pooled on the device. Shards alone update rows. When a
step has been committed, the copies of the rows that it touched are stale, and they are asked for again at once, for the
version to come: the answer is on its way while the next step computes the layers before its memory.
The next lookup waits for it. So a lookup reads, row for row, the bytes that it would read without a cache. Of several
trainers none knows what the others touched: then all copies are asked for again.

Lookups that count accesses go to the shards, which count them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memory_store.calls import Waiting
from memory_store.client import StoreClient
from memory_store.errors import StoreError
from memory_store.grouping import group_by_address
from memory_store.kernels import FloatArray
from memory_store.lookups import FetchedRows, shard_slices
from memory_store.open_lookups import FetchedLookup
from memory_store.table_spec import TableSpec
from workers.gpu.pooling import pool, weight_gradient
from workers.gpu.row_cache import NO_SLOT, RowCache
from workers.tensor_tables import HostLookup, TensorLookup, TensorTable

CHOOSE_EVERY = 20  # steps
_NO_VALUES = np.empty((0, 0), dtype=np.float32)


class CachedTable(TensorTable):
    """`spec` of `store`, whose `capacity` hottest rows have copies on `device`."""

    def __init__(self, store: StoreClient, spec: TableSpec, capacity: int, device: torch.device) -> None:
        super().__init__(store, spec)
        self._store, self._device = store, device
        self._bounds = store.address_bounds(spec.name)
        self.cache = RowCache(capacity, int(self._bounds[-1]))
        dtype = torch.float64 if spec.dtype == "float64" else torch.float32
        self._copies = torch.empty(self.cache.capacity, spec.dim, dtype=dtype, device=device)
        self._arriving: Waiting[None] = _nothing
        self._touched: list[NDArray[np.uint32]] = []
        self._steps = 0
        store.on_change.append(self._changed)

    def begin_tensor_lookup(
        self, rows: Tensor, weights: Tensor, *, keep: bool, track: bool
    ) -> Waiting[TensorLookup]:
        rows_here, weights_here = rows.cpu().numpy(), weights.cpu().numpy()
        if track:
            counted = self.begin_lookup(rows_here, weights_here, keep=keep, track=True)
            return lambda: HostLookup(counted(), weights)
        entries = self._store.entries(self.spec, rows_here, weights_here)
        groups = group_by_address(entries.addresses)
        slots = self.cache.find(groups.addresses)
        version = self._store.version
        fetched = self._store.begin_fetch(self.spec, groups.addresses[slots == NO_SLOT])

        def finish() -> TensorLookup:
            self._arriving()
            values = self._gathered(slots, fetched())
            # On the CPU the kernels of the shards pool them, so that sums are those of a lookup without copies.
            rows = FetchedRows(entries, groups, values.numpy() if values.device.type == "cpu" else _NO_VALUES)
            return _CachedLookup(self, rows, values, weights, version, keep=keep)

        return finish

    def contribute(self, rows: FetchedRows, output: FloatArray, version: int) -> FetchedLookup:
        """The lookup of `rows` as the store knows it, for its backward pass."""
        slices = shard_slices(rows.groups, self._bounds)
        return FetchedLookup(self._store, version, True, rows.entries, output, self.name, rows, slices)

    def will_change(self, addresses: NDArray[np.uint32]) -> None:
        """The step under way touches these rows."""
        self._touched.append(addresses)

    def _gathered(self, slots: NDArray[np.int32], fetched: FloatArray) -> Tensor:
        """The different rows of a lookup, `[U, D]` on the device: copies, and what was fetched."""
        found = torch.from_numpy(slots != NO_SLOT).to(self._device)
        values = self._copies.new_empty(slots.size, self.dim)
        values[found] = self._copies[torch.from_numpy(slots[slots != NO_SLOT]).long().to(self._device)]
        values[~found] = torch.from_numpy(fetched).to(self._device)
        return values

    def _changed(self, replaced: bool) -> None:
        """The tables are at another version; see `StoreClient.on_change`."""
        touched, self._touched = self._touched, []
        if replaced:
            self._arriving = _nothing
            self.cache.all_touched()
            return
        self._arriving()
        self._arriving = _nothing
        if self._store.writers > 1:
            self.cache.all_touched()
        for addresses in touched:
            self.cache.touched(addresses)
        if self._steps % CHOOSE_EVERY == 0:
            self.cache.choose()
        self._steps += 1
        self._refresh(self.cache.stale())

    def _refresh(self, addresses: NDArray[np.uint32]) -> None:
        if addresses.size == 0:
            return
        slots = self.cache.slots(addresses)
        rows = self._store.begin_fetch(self.spec, addresses)
        self.cache.filled(slots)  # for every lookup from now on, as it waits for them

        def arrive() -> None:
            self._copies[torch.from_numpy(slots).long().to(self._device)] = torch.from_numpy(rows()).to(
                self._device
            )
            self._arriving = _nothing

        self._arriving = arrive


class _CachedLookup:
    """See `TensorLookup`."""

    def __init__(
        self,
        table: CachedTable,
        rows: FetchedRows,
        values: Tensor,
        weights: Tensor,
        version: int,
        *,
        keep: bool,
    ) -> None:
        self._table, self._rows, self._values, self._keep = table, rows, values, keep
        self._on_cpu = values.device.type == "cpu"
        if self._on_cpu:
            self.output = torch.from_numpy(rows.pooled())
        else:
            inverse = torch.from_numpy(rows.groups.group_of_entry()).long().to(values.device)
            self._inverse = inverse.view(weights.shape)
            self.output = pool(values, self._inverse, weights)
        self._found = table.contribute(rows, np.empty(self.output.shape, _compute_dtype(values)), version)

    def begin_backward(self, output_gradient: Tensor) -> Waiting[Tensor]:
        if not self._keep:
            raise StoreError("This lookup was made without keep, or its backward pass has run already.")
        self._keep = False
        gradient = self._found.begin_backward(output_gradient.detach().cpu().contiguous().numpy())
        self._table.will_change(self._rows.groups.addresses)
        if self._on_cpu:
            return lambda: torch.from_numpy(gradient())
        return lambda: weight_gradient(self._values, self._inverse, output_gradient.detach())


def _compute_dtype(values: Tensor) -> type[np.floating[Any]]:
    return np.float64 if values.dtype == torch.float64 else np.float32


def _nothing() -> None:
    return None
