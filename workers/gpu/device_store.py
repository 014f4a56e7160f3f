"""Whole tables in the memory of the trainer's device, behind the interface of the in-process store.

The rows move on the device alone: selection, pooling and row update never leave it. What concerns files and statistics
is a host's business, so a *host image* lies beside it: one shard of the ordinary kind, in this process. First values and cuts
are read into it and copied to the device; a cut copies the device's rows into it and has it written. So the first values,
and the cuts, are those of any other placement, and a job can go from one to another.

Several trainers hold a table together: each has the rows of one shard on its device, and the image of that shard; they look
up in lockstep (device_peers.py). The leader's requests reach the others' images as they reach any shard.

The device needs room for values, state and 4 bytes a row; the host for the same once more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memory_store import messages as m
from memory_store.access import count_entries
from memory_store.calls import Waiting
from memory_store.carriers.base import Carrier
from memory_store.carriers.in_process import InProcessCarrier
from memory_store.client import StoreClient
from memory_store.cuts import CutFile
from memory_store.errors import NonFiniteGradientError, PkmError, StoreError, UsageError
from memory_store.kernels import FloatArray
from memory_store.lookups import Lookup
from memory_store.open_lookups import BackwardOnce
from memory_store.placement import Placement
from memory_store.shard import ShardCore
from memory_store.shard_host import ShardHost
from memory_store.shard_metrics import ShardMetrics
from memory_store.table import TablePart
from memory_store.table_handle import TableHandle
from memory_store.table_spec import TableSpec
from memory_store.table_steps import StepResult, check_step, clip_scales
from workers.gpu.device_peers import Alone, Peers, gathered_padded
from workers.gpu.pooling import pool, weight_gradient
from workers.gpu.row_gradients import RowGradients
from workers.gpu.row_update import RowTensors, squared_norm, update_rows
from workers.gpu.transfers import numbers_of, transfers
from workers.tensor_tables import TensorTable


class DeviceStore(StoreClient):
    """`specs` on `device`, with their first values.

    Alone, this process is their only writer, and has taken over. Otherwise it has the rows of shard `peers.rank`, and `reach`
    makes the carriers to the images of all shards, of which the given host has this one.
    """

    def __init__(
        self,
        specs: Sequence[TableSpec],
        device: torch.device,
        metrics: ShardMetrics | None = None,
        peers: Peers | None = None,
        reach: Callable[[ShardHost], Sequence[Carrier]] = lambda host: [InProcessCarrier(host)],
        incarnation: str = "embedded",
    ) -> None:
        if any(spec.dtype == "float64" for spec in specs):
            raise UsageError("Tables on a device are float32 or bfloat16; keep float64 ones in shards.")
        self.device, self.peers = device, peers or Alone()
        placement = Placement.even(self.peers.world)
        self._core = ShardCore(specs, placement, self.peers.rank, incarnation=incarnation)
        self._rows = {name: _tensors(part, device) for name, part in self._core.tables.items()}
        self._pending: dict[str, list[RowGradients]] = {spec.name: [] for spec in specs}
        self._finite: list[Tensor] = []
        self._cut: Waiting[list[CutFile]] = list
        super().__init__(reach(ShardHost(self._core, metrics=metrics, original=self)), specs, placement)
        self.in_lockstep = self.peers.world > 1
        self.from_image()
        if self.peers.world == 1:
            self.take_over()

    def table(self, name: str) -> TableHandle:
        """The table called `name`. Raises StoreError if there is none."""
        return DeviceTable(self, super().table(name).spec)

    def rows(self, name: str) -> RowTensors:
        """The tensors of this device's part of a table, by address from `first_address` on."""
        return self._rows[name]

    def first_address(self, name: str) -> int:
        """The address of row 0 of `rows`."""
        return self._core.tables[name].first_address

    # ---- joining, cuts, statistics: through the images -----------------------------------------------------------

    def join(self, sender: m.Sender, writers: int) -> None:
        if writers != self.peers.world:
            raise UsageError(
                f"The tables lie on {self.peers.world} devices, one for each trainer; {writers} trainers can't share them."
            )
        version = self.version
        super().join(sender, writers)
        self.version = version  # the image's is that of the last cut
        self._forget()

    def begin_cut(self, folder: str) -> Waiting[list[CutFile]]:
        """See `StoreClient.begin_cut`. Waits for the end of the cut before, which is written from the same image."""
        with suppress(PkmError):  # who began it hears of it
            self._cut()
        self._cut = super().begin_cut(folder)
        return self._cut

    def into_image(self) -> int:
        """See `Original`."""
        for name, part in self._core.tables.items():
            for array, tensor in _pairs(part, self._rows[name]):
                transfers(self.device).fill_array(array, tensor)
        return self.version

    def from_image(self) -> None:
        """See `Original`."""
        for name, part in self._core.tables.items():
            for array, tensor in _pairs(part, self._rows[name]):
                transfers(self.device).fill_tensor(tensor, array)
        self._forget()

    def touched(self, table: str, since: int) -> int:
        """See `Original`."""
        return int((self._rows[table].last_step > since).sum())

    def count_accesses(self, table: str, addresses: Tensor, weights: Tensor) -> None:
        """Count the entries of a lookup, flat, all of this device's part."""
        part = self._core.tables[table]
        host = addresses.cpu().numpy().astype(np.uint32), weights.float().cpu().numpy()
        count_entries(*host, part.first_address, part.accesses, part.weight_sums)

    # ---- steps ---------------------------------------------------------------------------------------------------

    def contribute_rows(self, table: str, gradients: RowGradients) -> None:
        """Add gradients to the step under way."""
        self._pending[table].append(gradients)
        self._finite.append(gradients.vectors.isfinite().all() & gradients.weights.isfinite().all())

    def step(
        self, learning_rates: Mapping[str, float], clip_norms: Mapping[str, float] | None = None
    ) -> StepResult:
        """See `StoreClient.step`."""
        check_step(self.specs, learning_rates, clip_norms or {})
        if refusal := self.refusal():
            raise refusal
        gradients = {name: _joined(parts) for name, parts in self._pending.items() if parts}
        norms: dict[str, float] = {}
        scales = dict.fromkeys(self.specs, 1.0)
        mean = 1 / self.peers.world
        if clip_norms:
            norms = dict.fromkeys(self.specs, 0.0)
            for name, rows in gradients.items():
                squares = self.peers.total(squared_norm(rows))
                norms[name] = mean * numbers_of(squares.sqrt())()[0]
            scales = dict(zip(norms, clip_scales(norms, clip_norms, self.version), strict=True))
        for name, rows in gradients.items():
            update_rows(
                self.specs[name].optimizer,
                self._rows[name],
                rows,
                step=self.version + 1,
                learning_rate=learning_rates[name],
                scale=torch.full((), mean * scales[name], device=self.device),
                seed=self.specs[name].seed,
                first_address=self.first_address(name),
            )
        self._forget()
        self.version += 1
        self._changed()
        return StepResult(self.version, norms)

    def skip_step(self) -> None:
        """See `StoreClient.skip_step`."""
        self._forget()
        self.version += 1
        self._changed()

    def refusal(self) -> NonFiniteGradientError | None:
        """Whether a contribution to this step was not finite: the one wait for the device in a step."""
        finite, self._finite = self._finite, []
        if not finite or numbers_of(torch.stack(finite).all())()[0]:
            return None
        return NonFiniteGradientError(
            f"A gradient of the values holds NaN or infinity in step {self.version}; no row was touched. "
            "Lower the learning rate, or look for the layer that overflows."
        )

    def _forget(self) -> None:
        self._pending = {name: [] for name in self.specs}
        self._finite = []


class _Entries(NamedTuple):
    """The entries of the lookups of all trainers, `[W T, M]` each.

    rows: rows of this device's part; where `here` is False the row is another's, and 0 stands for it. weights: as they
    came; of which 0 counts where `here` is False. here is None if all rows are here.
    """

    rows: Tensor
    weights: Tensor
    here: Tensor | None

    def only_here(self, numbers: Tensor) -> Tensor:
        """`numbers` with 0 for the rows of others."""
        return numbers if self.here is None else torch.where(self.here, numbers, 0)


class DeviceTable(TensorTable):
    """One table of a `DeviceStore`."""

    def __init__(self, store: DeviceStore, spec: TableSpec) -> None:
        super().__init__(store, spec)
        self._store = store

    def begin_tensor_lookup(
        self, rows: Tensor, weights: Tensor, *, keep: bool, track: bool
    ) -> Waiting[DeviceLookup]:
        entries, real = self._entries(self.addresses(rows), weights.float(), keep)
        if track:
            counted = real if entries.here is None else entries.here & real
            self._store.count_accesses(
                self.name,
                entries.rows[counted] + self._store.first_address(self.name),
                entries.weights[counted],
            )
        found = DeviceLookup(self._store, self.name, entries, rows.shape[0], keep=keep)
        return lambda: found

    def _entries(self, addresses: Tensor, weights: Tensor, keep: bool) -> tuple[_Entries, Tensor]:
        """The entries of all trainers, and which of them are of bags that somebody has asked for.

        A training step has as many tokens at every trainer. In an evaluation one may have fewer than others.
        """
        peers, real = self._store.peers, None
        if peers.world == 1:
            return _Entries(addresses, weights, None), torch.ones_like(addresses, dtype=torch.bool)
        if keep:
            addresses, weights = peers.gather(addresses), peers.gather(weights)
            real = torch.ones_like(addresses, dtype=torch.bool)
        else:
            addresses, bags = gathered_padded(peers, addresses)
            weights, _ = gathered_padded(peers, weights)
            real = bags[:, None].expand_as(addresses)
        rows = addresses - self._store.first_address(self.name)
        here = (rows >= 0) & (rows < self._store.rows(self.name).values.shape[0])
        return _Entries(torch.where(here, rows, 0), weights, here), real

    def begin_lookup(
        self, rows: NDArray[np.int64], weights: FloatArray, *, keep: bool, track: bool = False
    ) -> Waiting[Lookup]:
        raise StoreError(f"Table {self.name!r} lies on a device; look it up with tensors.")


class DeviceLookup:
    """A lookup of `bags` tokens in a table on the device; see `TensorLookup`."""

    def __init__(self, store: DeviceStore, table: str, entries: _Entries, bags: int, *, keep: bool) -> None:
        sums = pool(store.rows(table).values, entries.rows, entries.only_here(entries.weights))
        self.output = store.peers.sum_of_mine(sums)[:bags]
        self._store, self._table, self._entries = store, table, entries
        self._backward = BackwardOnce(store, store.version, keep)

    def begin_backward(self, output_gradient: Tensor) -> Waiting[Tensor]:
        self._backward.begin()
        entries, peers, values = self._entries, self._store.peers, self._store.rows(self._table).values
        gradient = peers.gather(output_gradient.detach().float().contiguous())
        bags, per_bag = entries.rows.shape
        bag_of_entry = torch.arange(bags * per_bag, device=gradient.device) // per_bag
        # The place behind the last row stands for the rows of others.
        rows = (
            entries.rows if entries.here is None else torch.where(entries.here, entries.rows, values.shape[0])
        )
        contributions = RowGradients(
            rows.flatten(), bag_of_entry, entries.weights.flatten(), gradient, values.shape[0]
        )
        self._store.contribute_rows(self._table, contributions)

        def finish() -> Tensor:
            products = weight_gradient(values, entries.rows, gradient)
            return peers.sum_of_mine(entries.only_here(products))

        return finish


def _tensors(part: TablePart, device: torch.device) -> RowTensors:
    dtype = torch.bfloat16 if part.spec.dtype == "bfloat16" else torch.float32
    return RowTensors(
        torch.empty(part.values.shape, dtype=dtype, device=device),
        torch.empty(part.first_state.shape, device=device),
        torch.empty(part.second_state.shape, device=device),
        torch.empty(part.last_step.shape, dtype=torch.int32, device=device),
    )


def _pairs(part: TablePart, rows: RowTensors) -> list[tuple[NDArray[Any], Tensor]]:
    """The image's arrays beside the device's tensors, as types that both NumPy and torch know."""
    bits = rows.values.view(torch.int16) if rows.values.dtype == torch.bfloat16 else rows.values
    values = part.values.view(np.int16) if part.values.dtype == np.uint16 else part.values
    return [
        (values, bits),
        (part.first_state, rows.first_state),
        (part.second_state, rows.second_state),
        (part.last_step.view(np.int32), rows.last_step),
    ]


def _joined(parts: Sequence[RowGradients]) -> RowGradients:
    """The gradients of all lookups of a step, at least one, in their order."""
    if len(parts) == 1:
        return parts[0]
    firsts = np.cumsum([0, *(part.vectors.shape[0] for part in parts)]).tolist()
    numbers = [part.vector_numbers + first for part, first in zip(parts, firsts, strict=False)]
    return RowGradients(
        torch.cat([part.rows for part in parts]),
        torch.cat(numbers),
        torch.cat([part.weights for part in parts]),
        torch.cat([part.vectors for part in parts]),
        parts[0].table_rows,
    )
