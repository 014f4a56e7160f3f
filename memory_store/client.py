"""A writer's view of the store: all shards of all tables, as if they were one table in this process.

The client splits a lookup by shard, sends the parts at once, and puts the replies together in shard order. It
numbers its updates per shard, and names in every request the version it means, so that it never computes on
rows that are older or newer than it thinks. Row gradients are on their way while the backward pass goes on;
`step` collects them.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from memory_store import messages as m
from memory_store.calls import ReplyType, Waiting, expect
from memory_store.carriers.base import Carrier
from memory_store.cuts import CutFile
from memory_store.errors import NonFiniteGradientError, StoreError
from memory_store.grouping import group_by_address
from memory_store.kernels import FloatArray, gather_rows, pool_rows
from memory_store.lookups import (
    Entries,
    FetchedRows,
    Lookup,
    LookupKind,
    access_sums,
    added_sums,
    cheaper,
    joined_rows,
    shard_slices,
    split_entries,
)
from memory_store.mapped_shards import MappedShards
from memory_store.open_lookups import Contributing, FetchedLookup, InPlaceLookup, PooledLookup
from memory_store.placement import Placement, addresses_of
from memory_store.reused_memory import empty
from memory_store.table_handle import TableHandle
from memory_store.table_spec import TableSpec
from memory_store.table_steps import StepResult, check_step, clip_scales

TIMEOUT_S = 120.0
CUT_TIMEOUT_S = 3600.0

_Read = TypeVar("_Read")


class StoreClient:
    """The store, for one writer (or for a reader that has not joined a group).

    See `connect` and `in_process_store`.
    """

    def __init__(
        self,
        carriers: Sequence[Carrier],
        specs: Sequence[TableSpec],
        placement: Placement,
        *,
        lookup: LookupKind = "auto",
        timeout_s: float = TIMEOUT_S,
        mapped: MappedShards | None = None,
        remapped: Callable[[Sequence[str]], MappedShards | None] = lambda incarnations: None,
    ) -> None:
        self.specs = {spec.name: spec for spec in specs}
        self.version, self.writers = 0, 1
        self.in_lockstep = False  # whether all writers must make the same lookups at once
        self.sender = m.Sender("", 0, 0)
        self._carriers = list(carriers)
        # Of each table, the first address of every shard, and the end: int64 [S + 1].
        self.bounds = {spec.name: placement.address_bounds(spec.rows) for spec in specs}
        self._lookup_kind = lookup
        self._mapped = mapped
        self._remapped = remapped
        self._timeout_s = timeout_s
        self._lookups = self._cuts = 0
        self._seq = [0] * len(carriers)
        self._contributions = [0] * len(carriers)
        self._unconfirmed: list[Future[m.Reply]] = []
        # For metrics: entered round waits for shards; told of lookups read in place (table, rows, bytes, seconds).
        self.waiting: Callable[[], AbstractContextManager[object]] = nullcontext
        self.on_read_in_place: Callable[[str, int, int, float], None] | None = None
        # Told when the tables are at another version: by a step (False), or because they were replaced (True).
        self.on_change: list[Callable[[bool], None]] = []
        # Told when a step's contributions are to be waited for (False), or dropped (True), by who sends some in a thread.
        self.before_change: list[Callable[[bool], None]] = []
        self._numbering = threading.Lock()  # that what is sent is sent in the order of its numbers

    def table(self, name: str) -> TableHandle:
        """The table called `name`. Raises StoreError if there is none."""
        if name not in self.specs:
            raise StoreError(f"No table {name!r} in this store; there are: {', '.join(self.specs)}.")
        return TableHandle(self, self.specs[name])

    def _changed(self, *, replaced: bool = False) -> None:
        for told in self.on_change:
            told(replaced)

    def send_through(self, wrap: Callable[[int, Carrier], Carrier]) -> None:
        """Send what goes to a shard from now on through what `wrap` makes of its number and its carrier."""
        self._carriers = [wrap(shard, carrier) for shard, carrier in enumerate(self._carriers)]

    # ---- joining -------------------------------------------------------------------------------------------

    def take_over(self, writers: int = 1) -> m.Sender:
        """Open a new group of `writers` writers, this client number 0 of it; older groups are fenced off."""
        infos = self.describe()
        session, epoch = uuid.uuid4().hex, max(info.epoch for info in infos) + 1
        self.ask(m.OpenGroup(session, epoch, writers), m.Done)
        self.join(m.Sender(session, epoch, 0), writers)
        return self.sender

    def join(self, sender: m.Sender, writers: int) -> None:
        """Write as `sender`, a member of a group that was opened by `take_over`."""
        for told in self.before_change:
            told(True)
        self.sender, self.writers = sender, writers
        self._seq = [0] * len(self._carriers)
        self._contributions = [0] * len(self._carriers)
        self._unconfirmed = []
        self.version = self.describe()[0].version
        self._changed(replaced=True)

    def describe(self) -> list[m.ShardInfo]:
        """What every shard says of itself, in shard order."""
        return self.ask(m.Describe(), m.ShardInfo)

    def initialise(self) -> None:
        """Put every table to its first values, at version 0."""
        self._replace(m.Initialise)
        self.version = 0
        self._changed(replaced=True)

    def load_cut(self, folder: str, version: int) -> None:
        """Have every shard read its buckets of the cut in `folder`, whose step is `version`.

        Raises CutError, naming the file, if the cut is damaged.
        """
        self._replace(m.LoadCut, folder=folder)
        self.version = version
        self._changed(replaced=True)

    def begin_cut(self, folder: str) -> Waiting[list[CutFile]]:
        """Begin a cut of the tables in `folder` once all that this writer has committed is applied; steps may then go on.

        Call what comes back, in any thread, for the files of all shards. The call raises StoreError if one could not
        write them.
        """
        self.synchronise()
        self._cuts += 1
        self.ask(m.BeginCut(self.sender, folder, self.version, self._cuts), m.Done)
        request = m.WriteCut(self.sender, folder, self.version, self._cuts)
        futures = [carrier.submit(request, CUT_TIMEOUT_S) for carrier in self._carriers]

        def finish() -> list[CutFile]:
            replies = [expect(future, m.CutWritten) for future in futures]
            return [CutFile.model_validate(entry) for reply in replies for entry in json.loads(reply.files)]

        return finish

    def _replace(self, make: type[m.Initialise] | type[m.LoadCut], **parts: Any) -> None:
        for told in self.before_change:
            told(True)
        requests = []
        for shard in range(len(self._carriers)):
            self._seq[shard] += 1
            self._contributions[shard] = 0  # the shards forget them
            requests.append(make(sender=self.sender, seq=self._seq[shard], **parts))
        futures = [
            carrier.submit(request, CUT_TIMEOUT_S)
            for carrier, request in zip(self._carriers, requests, strict=True)
        ]
        for future in futures:
            expect(future, m.Done)

    @property
    def reads_in_place(self) -> bool:
        """Whether lookups read the shards' memory without a message (see mapped_shards.py)."""
        return self._mapped is not None and self._lookup_kind == "auto" and self.sender.epoch > 0

    # ---- lookups -------------------------------------------------------------------------------------------

    def begin_lookup(
        self, spec: TableSpec, rows: NDArray[np.int64], weights: FloatArray, *, keep: bool, track: bool
    ) -> Waiting[Lookup]:
        """See `TableHandle.begin_lookup`."""
        self._raise_failed()
        entries = Entries.of(spec, rows, weights, self.bounds[spec.name])
        if self._mapped is not None and self.reads_in_place and not track:
            return self._pool_in_place(self._mapped, spec, entries, keep=keep)
        kind = cheaper(entries) if self._lookup_kind == "auto" else self._lookup_kind
        if kind == "pool":
            return self._pool(spec, entries, keep=keep, track=track)
        return self._fetch(spec, entries, keep=keep, track=track)

    def begin_fetch(self, spec: TableSpec, addresses: NDArray[np.uint32]) -> Waiting[FloatArray]:
        """Ask for rows by their addresses, uint32 `[U]`, distinct and rising; what comes back waits for them `[U, D]`.

        They are those of the version that the tables are at now; call it before the step, or never.
        """
        self._raise_failed()
        if self._mapped is not None and self.reads_in_place:

            def gather(values: NDArray[Any]) -> FloatArray:
                rows = empty((addresses.size, spec.dim), spec.compute_dtype)
                gather_rows(values, 0, addresses, rows)
                return rows

            return self._read_in_place(self._mapped, spec, addresses.size, gather)
        parts = [addresses[part] for part in shard_slices(addresses, self.bounds[spec.name])]
        nothing, no_sums = np.empty(0, dtype=np.uint32), np.empty(0, dtype=spec.compute_dtype)
        futures = self._send([m.Fetch(spec.name, self.version, False, p, nothing, no_sums) for p in parts])

        def finish() -> FloatArray:
            with self.waiting():
                return joined_rows([expect(future, m.Rows).values for future in futures])

        return finish

    def _pool_in_place(
        self, mapped: MappedShards, spec: TableSpec, entries: Entries, *, keep: bool
    ) -> Waiting[Lookup]:
        version = self.version

        def pool(values: NDArray[Any]) -> Lookup:
            output = empty((entries.tokens, spec.dim), spec.compute_dtype)
            pool_rows(values, 0, entries.offsets, entries.addresses, entries.weights, output)
            return InPlaceLookup(self, version, keep, entries, output, spec.name, values)

        return self._read_in_place(mapped, spec, entries.addresses.size, pool)

    def _read_in_place(
        self, mapped: MappedShards, spec: TableSpec, rows: int, read: Callable[[NDArray[Any]], _Read]
    ) -> Waiting[_Read]:
        """What `read` makes of the values of a table at this version, `[addresses, D]`, of which it reads `rows`."""
        version = self.version

        def finish() -> _Read:
            begun = time.perf_counter()
            with self.waiting():
                mapped.wait(version, self.sender.epoch, self._timeout_s, self._raise_failed, self._remapped)
            values = mapped.values(spec.name)
            result = read(values)
            if self.on_read_in_place is not None:
                size_bytes = rows * spec.dim * values.itemsize
                self.on_read_in_place(spec.name, rows, size_bytes, time.perf_counter() - begun)
            return result

        return finish

    def _pool(self, spec: TableSpec, entries: Entries, *, keep: bool, track: bool) -> Waiting[Lookup]:
        self._lookups += 1
        version, number, parts = self.version, self._lookups, split_entries(entries)
        futures = self._send(
            [
                m.Pool(
                    sender=self.sender,
                    table=spec.name,
                    version=version,
                    lookup=number,
                    keep=keep,
                    track=track,
                    offsets=part.offsets,
                    addresses=cast("NDArray[np.uint32]", part.take(entries.addresses)),
                    weights=part.take(entries.weights),
                )
                for part in parts
            ]
        )

        def finish() -> Lookup:
            with self.waiting():
                output = added_sums([expect(future, m.Rows).values for future in futures])
            return PooledLookup(self, version, keep, entries, output, number, parts)

        return finish

    def _fetch(self, spec: TableSpec, entries: Entries, *, keep: bool, track: bool) -> Waiting[Lookup]:
        groups = group_by_address(entries.addresses)
        accesses, weight_sums = access_sums(groups, entries.weights, track)
        version = self.version
        futures = self._send(
            [
                m.Fetch(spec.name, version, track, groups.addresses[part], accesses[part], weight_sums[part])
                for part in shard_slices(groups.addresses, entries.bounds)
            ]
        )

        def finish() -> Lookup:
            with self.waiting():
                fetched = [expect(future, m.Rows).values for future in futures]
            rows = FetchedRows(entries, groups, joined_rows(fetched))
            return FetchedLookup(self, version, keep, entries, rows.pooled(), spec.name, rows)

        return finish

    # ---- updates -------------------------------------------------------------------------------------------

    def contribute(self, shard: int, make: Contributing, **parts: Any) -> Future[m.Reply]:
        """Send one contribution to the step under way to a shard, numbered; `step` waits for it. Usable from many threads."""
        with self._numbering:
            self._seq[shard] += 1
            self._contributions[shard] += 1
            request = make(sender=self.sender, seq=self._seq[shard], step=self.version, **parts)
            self._unconfirmed.append(self._carriers[shard].submit(request, self._timeout_s))
            return self._unconfirmed[-1]

    def replace_rows(self, table: str, rows: NDArray[np.int64], values: FloatArray) -> None:
        """Put `values` `[U, D]` in the place of distinct rows int64 `[U]` at the end of the step under way.

        Their optimizer state starts anew. `step` waits for it, and says if a shard has refused it.
        """
        spec = self.specs[table]
        addresses = addresses_of(rows, spec.rows)
        order = np.argsort(addresses)
        addresses, values = addresses[order], np.ascontiguousarray(values[order], dtype=spec.compute_dtype)
        for shard, part in enumerate(shard_slices(addresses, self.bounds[table])):
            self.contribute(shard, m.ReplaceRows, table=table, addresses=addresses[part], values=values[part])

    def step(
        self, learning_rates: Mapping[str, float], clip_norms: Mapping[str, float] | None = None
    ) -> StepResult:
        """Commit this writer's contributions; once every writer has, each shard applies its optimizer once.

        Gradients are the mean over the writers. `clip_norms` bounds the norm of a table's whole gradient, over all
        shards. This returns before the shards have finished, and the next lookup waits for them. Raises
        NonFiniteGradientError, or StoreError, if a shard refused a contribution, and UsageError unless every table, and
        no other, has a learning rate.
        """
        check_step(self.specs, learning_rates, clip_norms or {})
        self.synchronise()
        futures = self._commit(learning_rates, hold=bool(clip_norms))
        norms: dict[str, float] = {}
        if clip_norms:
            with self.waiting():
                squares = np.sum([expect(future, m.Committed).squared_norms for future in futures], axis=0)
            norms = {name: float(np.sqrt(squares[index].sum())) for index, name in enumerate(self.specs)}
            scales = clip_scales(norms, clip_norms, self.version)
            apply = m.Apply(self.sender, self.version, np.array(scales, dtype=np.float64))
            futures = self._send([apply] * len(self._carriers))
        self._unconfirmed = futures
        self.version += 1
        self._changed()
        return StepResult(self.version, norms)

    def skip_step(self) -> None:
        """Move the tables to the next version as they are; every writer must. What was contributed is dropped."""
        self.refusal()
        self._unconfirmed = self._commit(dict.fromkeys(self.specs, 0.0), discard=True)
        self.version += 1
        self._changed()

    def refusal(self) -> NonFiniteGradientError | None:
        """Wait for the contributions to this step; how a shard refused one that was not finite, if one did."""
        refusal = None
        for told in self.before_change:
            told(False)
        unconfirmed, self._unconfirmed = self._unconfirmed, []
        for future in unconfirmed:
            try:
                with self.waiting():
                    future.result()
            except NonFiniteGradientError as error:
                refusal = error
        return refusal

    def _commit(
        self, learning_rates: Mapping[str, float], *, hold: bool = False, discard: bool = False
    ) -> list[Future[m.Reply]]:
        rates = np.array([learning_rates[name] for name in self.specs], dtype=np.float64)
        futures = []
        for shard, carrier in enumerate(self._carriers):
            self._seq[shard] += 1
            commit = m.Commit(
                self.sender,
                self._seq[shard],
                self.version,
                self._contributions[shard],
                hold,
                1 / self.writers,
                rates,
                discard,
            )
            self._contributions[shard] = 0
            futures.append(carrier.submit(commit, self._timeout_s))
        return futures

    def synchronise(self) -> None:
        """Wait until every shard has applied all that this writer has committed."""
        if refusal := self.refusal():
            raise refusal

    def _raise_failed(self) -> None:
        """An update that has failed is said at the next occasion, not at the end of a deadline; but one that was not
        finite with its step, so that all writers may skip that together.
        """
        for future in self._unconfirmed:
            if future.done() and not isinstance(future.exception(), NonFiniteGradientError):
                future.result()

    # ---- calls ---------------------------------------------------------------------------------------------

    def _send(self, requests: Sequence[m.Request]) -> list[Future[m.Reply]]:
        """Send request s to shard s, all at once."""
        return [
            carrier.submit(request, self._timeout_s)
            for carrier, request in zip(self._carriers, requests, strict=True)
        ]

    def ask(self, request: m.Request, reply: type[ReplyType]) -> list[ReplyType]:
        """Send one request to every shard; replies in shard order."""
        return [expect(future, reply) for future in self._send([request] * len(self._carriers))]

    def close(self) -> None:
        """Close the connections; the shards stay."""
        for carrier in self._carriers:
            carrier.close()
