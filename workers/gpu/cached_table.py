"""A table in host shards, with a copy of its hottest rows on the trainer's device.

The device sorts the entries of a lookup by row, and tells the host which different rows there are, for which alone the host
waits. Those without a fresh copy are fetched, and sums are made on the device. Shards alone update rows. When a step has
been committed, the copies of the rows that it touched are stale, and they are asked for again at once, for the version to
come: the answer is on its way while the next step computes the layers before its memory. The next lookup waits for it. So a
lookup reads, row for row, the bytes that it would read without copies. Of several trainers none knows what the others have
touched: then all copies are asked for again after every step.

All lookups by which this process trains the table must go through it. Lookups that count accesses go to the shards,
which count them.

On a GPU the backward pass waits for nothing: the gradient of the sums goes to the host, where the rows' gradients are made of
it and sent to the shards, while autograd goes on (gradient_sender.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memory_store.calls import Waiting
from memory_store.client import StoreClient
from memory_store.errors import UsageError
from memory_store.kernels import FloatArray
from memory_store.open_lookups import BackwardOnce, contribute_rows
from memory_store.optimizers import Contributions
from memory_store.placement import addresses_of
from memory_store.table_spec import TableSpec
from workers.gpu.entry_groups import EntryGroups, group_entries
from workers.gpu.gradient_sender import GradientSender
from workers.gpu.pooling import pool, weight_gradient
from workers.gpu.row_cache import Found, RowCache
from workers.gpu.transfers import transfers
from workers.tensor_tables import HostLookup, TensorLookup, TensorTable

CHOOSE_EVERY = 20  # steps
CHOOSING = 5  # steps that a choice is given, but for the first, which is of one step's rows


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
        self._sender = GradientSender(store, beside=self._copier.beside)
        store.on_change.append(self._changed)

    def begin_tensor_lookup(
        self, rows: Tensor, weights: Tensor, *, keep: bool, track: bool
    ) -> Waiting[TensorLookup]:
        if track:
            return self._counted_lookup(rows, weights, keep=keep)
        groups = group_entries(self.addresses(rows).flatten())
        addresses_first, distinct = self._copier.to_host(groups.addresses.int(), groups.distinct)()
        addresses = addresses_first[: int(distinct[0])].view(np.uint32)
        found = self.cache.find(addresses)
        missing = addresses[found.missing]
        fetched = self._store.begin_fetch(self.spec, missing) if missing.size else None
        entries = self._entries(groups, addresses, weights) if keep else None
        backward = BackwardOnce(self._store, self._store.version, keep)
        inverse = groups.group_of_entry.view(rows.shape)

        def finish() -> TensorLookup:
            self._arrive()
            values = self._gathered(found, fetched() if fetched else None)
            return _CachedLookup(self, backward, entries, values, inverse, weights)

        return finish

    def _counted_lookup(self, rows: Tensor, weights: Tensor, *, keep: bool) -> Waiting[TensorLookup]:
        """A lookup by the shards, which count its accesses."""
        rows_here, weights_here = self._copier.to_host(rows, weights)()
        if keep:
            self._touched.append(addresses_of(rows_here, self.rows).reshape(-1))
        counted = self.begin_lookup(rows_here, weights_here, keep=keep, track=True)
        return lambda: HostLookup(counted(), weights)

    def _entries(self, groups: EntryGroups, addresses: NDArray[np.uint32], weights: Tensor) -> _Entries:
        """The entries of a lookup, on their way to the host, where the gradients of rows are made of them."""
        starts = groups.starts[: addresses.size + 1].int()
        tokens = (groups.order // max(1, weights.shape[1])).int()
        return _Entries(
            addresses, self._copier.to_host(starts, tokens, weights.float().flatten()[groups.order])
        )

    def contribute(self, entries: _Entries, gradient: Tensor) -> None:
        """Give the rows of a lookup their part of the gradient of its sums, once that is on the host."""
        self._touched.append(entries.addresses)
        on_host = self._copier.to_host(gradient)

        def send() -> None:
            starts, tokens, weights = entries.on_host()
            (vectors,) = on_host()
            contributions = Contributions(entries.addresses, starts, tokens, weights, vectors)
            contribute_rows(self._store, self.name, self._bounds, contributions)

        self._sender.send(send)

    def _gathered(self, found: Found, fetched: FloatArray | None) -> Tensor:
        """The different rows of a lookup, `[U, D]` on the device: copies, and what was fetched."""
        values = self._copies[self._copier.to_device(found.slots).clamp(min=0)]
        if fetched is not None:
            values[self._copier.to_device(found.missing)] = self._copier.to_device(fetched)
        return values

    def _changed(self, replaced: bool) -> None:
        """The tables are at another version; see `StoreClient.on_change`."""
        if self._arriving is not None:
            # Nobody has waited for them, and now they would be of an older version.
            self.cache.touched(self._arriving[0])
            self._arriving = None
        touched, self._touched = self._touched, []
        if replaced or self._store.writers > 1:
            self.cache.all_touched()
        for addresses in touched:
            self.cache.touched(addresses)
        if replaced:
            return  # this may not be the version to train from yet
        if self._steps % CHOOSE_EVERY == 0:
            self._choice = self.cache.begin_choice()
            self._choice_due = self._steps + (CHOOSING if self._steps else 0)
        if self._steps == self._choice_due:
            self._choice()
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
            slots = self._copier.to_device(self.cache.slots(addresses))
            self._copies[slots] = self._copier.to_device(rows())
            self._arriving = None  # not before: if they don't come, no lookup that counts on them may go on


@dataclass(frozen=True)
class _Entries:
    """What the host needs of a lookup for its backward pass.

    addresses: uint32 `[U]`, distinct, ascending. on_host waits for starts, token numbers and weights, as `Contributions` has
    them.
    """

    addresses: NDArray[np.uint32]
    on_host: Waiting[Sequence[NDArray[Any]]]


class _CachedLookup:
    """See `TensorLookup`. `entries` is None for a lookup without keep."""

    def __init__(
        self,
        table: CachedTable,
        backward: BackwardOnce,
        entries: _Entries | None,
        values: Tensor,
        inverse: Tensor,
        weights: Tensor,
    ) -> None:
        self._table, self._backward, self._entries = table, backward, entries
        self._values, self._inverse = values, inverse
        self.output = pool(values, inverse, weights.float())

    def begin_backward(self, output_gradient: Tensor) -> Waiting[Tensor]:
        self._backward.begin()
        assert self._entries is not None
        gradient = output_gradient.detach().float()
        self._table.contribute(self._entries, gradient)
        return lambda: weight_gradient(self._values, self._inverse, gradient)
