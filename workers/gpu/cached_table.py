"""A table in host shards, with a copy of its hottest rows on the trainer's device.

A lookup fetches only the rows that have no fresh copy, and pools on the device. Shards alone update rows. When a step has
been committed, the copies of the rows that it touched are stale, and they are asked for again at once, for the version to
come: the answer is on its way while the next step computes the layers before its memory. The next lookup waits for it. So a
lookup reads, row for row, the bytes that it would read without copies. Of several trainers none knows what the others have
touched: then all copies are asked for again after every step.

All lookups by which this process trains the table must go through it. Lookups that count accesses go to the shards,
which count them.

On a GPU the backward pass waits for nothing: the gradient of the sums is on its way to the host while autograd goes on.
Of it the rows' gradients are made, and sent to the shards, when the next lookup asks for rows, or before the step's commit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memory_store.calls import Waiting
from memory_store.client import StoreClient
from memory_store.errors import UsageError
from memory_store.grouping import group_by_address
from memory_store.kernels import FloatArray
from memory_store.lookups import Entries, FetchedRows
from memory_store.open_lookups import FetchedLookup
from memory_store.placement import addresses_of
from memory_store.table_spec import TableSpec
from workers.gpu.pooling import pool, weight_gradient
from workers.gpu.row_cache import NO_SLOT, RowCache
from workers.gpu.transfers import transfers
from workers.tensor_tables import HostLookup, TensorLookup, TensorTable

CHOOSE_EVERY = 20  # steps
_NO_VALUES = np.empty((0, 0), dtype=np.float32)


class CachedTable(TensorTable):
    """`spec` of `store`, whose `capacity` hottest rows have copies on `device`, in float32.

    Raises UsageError for a float64 table.
    """

    def __init__(self, store: StoreClient, spec: TableSpec, capacity: int, device: torch.device) -> None:
        if spec.dtype == "float64":
            raise UsageError(
                f"Table {spec.name!r} is float64, and copies on a device are float32; use placement host."
            )
        super().__init__(store, spec)
        self._store, self._device = store, device
        self._bounds = store.bounds[spec.name]
        self.cache = RowCache(capacity, int(self._bounds[-1]))
        self._copies = torch.empty(self.cache.capacity, spec.dim, device=device)
        self._arriving: tuple[NDArray[np.uint32], Waiting[FloatArray]] | None = None
        self._touched: list[NDArray[np.uint32]] = []
        self._steps = 0
        self._copier = transfers(device)
        # Lookups whose gradients are on their way to the host, in the order of their backward passes.
        self._leaving: deque[tuple[FetchedLookup, Waiting[Sequence[FloatArray]]]] = deque()
        store.on_change.append(self._changed)
        store.before_commit.append(self._contribute)

    def begin_tensor_lookup(
        self, rows: Tensor, weights: Tensor, *, keep: bool, track: bool
    ) -> Waiting[TensorLookup]:
        on_host = self._copier.to_host(rows, weights)
        self._contribute()  # what was given to the device before, and so is here before
        rows_here, weights_here = on_host()
        if track:
            if keep:
                self.will_change(addresses_of(rows_here, self.rows).reshape(-1))
            counted = self.begin_lookup(rows_here, weights_here, keep=keep, track=True)
            return lambda: HostLookup(counted(), weights)
        entries = Entries.of(self.spec, rows_here, weights_here, self._bounds)
        groups = group_by_address(entries.addresses)
        slots = self.cache.find(groups.addresses)
        sums = np.empty((entries.tokens, self.dim), dtype=np.float32)  # never filled: they are on the device
        lookup = FetchedLookup(
            self._store,
            self._store.version,
            keep,
            entries,
            sums,
            self.name,
            FetchedRows(entries, groups, _NO_VALUES),
        )
        missing = groups.addresses[slots == NO_SLOT]
        fetched = self._store.begin_fetch(self.spec, missing) if missing.size else None
        inverse = self._copier.to_device(groups.group_of_entry()).long().view(rows.shape)

        def finish() -> TensorLookup:
            self._arrive()
            values = self._gathered(slots, fetched() if fetched else None)
            return _CachedLookup(self, lookup, groups.addresses, values, inverse, weights)

        return finish

    def will_change(self, addresses: NDArray[np.uint32]) -> None:
        """The step under way touches these rows."""
        self._touched.append(addresses)

    def contribute(self, lookup: FetchedLookup, gradient: Tensor) -> None:
        """Give the rows of `lookup` their part of the gradient of its sums: at once, or when that is on the host."""
        self._leaving.append((lookup, self._copier.to_host(gradient)))
        if not self._copier.beside:
            self._contribute()

    def _contribute(self) -> None:
        while self._leaving:
            lookup, on_host = self._leaving.popleft()
            lookup.begin_backward(*on_host())

    def _gathered(self, slots: NDArray[np.int32], fetched: FloatArray | None) -> Tensor:
        """The different rows of a lookup, `[U, D]` on the device: copies, and what was fetched."""
        values = self._copies.new_empty(slots.size, self.dim)
        found = slots != NO_SLOT
        values[self._numbers(np.flatnonzero(found))] = self._copies[self._numbers(slots[found])]
        if fetched is not None:
            values[self._numbers(np.flatnonzero(~found))] = self._copier.to_device(fetched)
        return values

    def _numbers(self, numbers: NDArray[np.int32] | NDArray[np.int64]) -> Tensor:
        return self._copier.to_device(numbers.astype(np.int64))

    def _changed(self, replaced: bool) -> None:
        """The tables are at another version; see `StoreClient.on_change`."""
        if self._arriving is not None:
            # Nobody has waited for them, and now they would be of an older version.
            self.cache.touched(self._arriving[0])
            self._arriving = None
        touched, self._touched = self._touched, []
        if replaced:
            self._leaving.clear()
        if replaced or self._store.writers > 1:
            self.cache.all_touched()
        for addresses in touched:
            self.cache.touched(addresses)
        if replaced:
            return  # this may not be the version to train from yet
        if self._steps % CHOOSE_EVERY == 0:
            self.cache.choose()
        self._steps += 1
        self._refresh()

    def _refresh(self) -> None:
        addresses = self.cache.stale()
        if addresses.size:
            self._arriving = addresses, self._store.begin_fetch(self.spec, addresses)
            # For all lookups from now on, as they wait for them.
            self.cache.filled(self.cache.slots(addresses))

    def _arrive(self) -> None:
        """Wait for the copies that were asked for."""
        if self._arriving is not None:
            addresses, rows = self._arriving
            slots = self._numbers(self.cache.slots(addresses))
            self._copies[slots] = self._copier.to_device(rows())
            self._arriving = None  # not before: if they don't come, no lookup that counts on them may go on


class _CachedLookup:
    """See `TensorLookup`. `lookup` takes the gradients of the rows to the shards."""

    def __init__(
        self,
        table: CachedTable,
        lookup: FetchedLookup,
        addresses: NDArray[np.uint32],
        values: Tensor,
        inverse: Tensor,
        weights: Tensor,
    ) -> None:
        self._table, self._lookup, self._addresses = table, lookup, addresses
        self._values, self._inverse = values, inverse
        self.output = pool(values, inverse, weights.float())

    def begin_backward(self, output_gradient: Tensor) -> Waiting[Tensor]:
        gradient = output_gradient.detach().float()
        self._table.contribute(self._lookup, gradient)
        self._table.will_change(self._addresses)
        return lambda: weight_gradient(self._values, self._inverse, gradient)
