"""The two lookups, and what each needs for its backward pass.

*Pool*: addresses and weights travel to the shards, every shard returns one partial sum per token. Backward,
the output gradient travels; the shard returns the gradient of the weights and keeps the gradient of its rows.
*Fetch*: distinct rows travel to the trainer, which pools them itself. Backward, it sums the gradient of each
row and sends it to the row's shard.

Pooling moves tokens x shards vectors, fetching one vector per distinct row: `cheaper` picks by that count.
Both give the result of one table in one process (to rounding, where partial sums of several shards are
added).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from memory_store.calls import Waiting
from memory_store.compilation import compiled
from memory_store.errors import StoreError
from memory_store.grouping import Groups, count_distinct
from memory_store.kernels import FloatArray, pool_rows, weight_gradients
from memory_store.optimizers import Contributions
from memory_store.placement import addresses_of
from memory_store.reused_memory import empty
from memory_store.table_spec import TableSpec

LookupKind = Literal["auto", "fetch", "pool"]


@dataclass(frozen=True)
class Entries:
    """The entries of one lookup: T tokens with M entries each (`tokens` and `per_token` here).

    addresses uint32 `[T*M]` and weights `[T*M]`, token by token; bounds int64 `[S + 1]`: first address of
    each shard.
    """

    tokens: int
    per_token: int
    addresses: NDArray[np.uint32]
    weights: FloatArray
    bounds: NDArray[np.int64]

    @staticmethod
    def of(
        spec: TableSpec, rows: NDArray[np.int64], weights: FloatArray, bounds: NDArray[np.int64]
    ) -> Entries:
        """Those of rows and weights `[T, M]`. Raises StoreError for other shapes, UsageError for a row outside the table."""
        if rows.ndim != 2 or rows.shape != weights.shape:
            raise StoreError(
                f"Rows {rows.shape} and weights {weights.shape} must have one shape [tokens, entries]."
            )
        return Entries(
            tokens=rows.shape[0],
            per_token=rows.shape[1],
            addresses=addresses_of(rows, spec.rows).reshape(-1),
            weights=np.ascontiguousarray(weights, dtype=spec.compute_dtype).reshape(-1),
            bounds=bounds,
        )

    @property
    def offsets(self) -> NDArray[np.int32]:
        return np.arange(self.tokens + 1, dtype=np.int32) * np.int32(self.per_token)

    def token_of_entry(self) -> NDArray[np.int32]:
        return np.repeat(np.arange(self.tokens, dtype=np.int32), self.per_token)


class Lookup(Protocol):
    """A finished lookup.

    `output` is `[T, D]`. If the lookup was made with keep, its backward pass may run once before the step:
    `begin_backward` takes the output's gradient `[T, D]` and contributes to the rows; what it returns waits for
    the weights' gradient `[T, M]`, and must be called before the step too. `backward` does both.
    A store in this process keeps the arrays it was given until the step: don't write into them before.
    """

    output: FloatArray

    def begin_backward(self, output_gradient: FloatArray) -> Waiting[FloatArray]: ...

    def backward(self, output_gradient: FloatArray) -> FloatArray: ...


def cheaper(entries: Entries) -> Literal["fetch", "pool"]:
    """The lookup that moves fewer vectors: pool if there are more distinct rows than tokens x shards."""
    shards = entries.bounds.size - 1
    if entries.tokens * shards >= entries.addresses.size:
        return "fetch"
    distinct = count_distinct(entries.addresses, int(entries.bounds[-1]))
    return "pool" if distinct > entries.tokens * shards else "fetch"


# ---- pool --------------------------------------------------------------------------------------------------


@compiled()
def _split_entries(
    tokens: int,
    per_token: int,
    addresses: NDArray[np.uint32],
    bounds: NDArray[np.int64],
    starts: NDArray[np.int64],
    offsets: NDArray[np.int32],
    entry: NDArray[np.int32],
) -> None:
    """Entries by shard, in their order: shard s gets entry[starts[s] : starts[s + 1]].

    Of these, token t has those from offsets[s, t] to offsets[s, t + 1].
    """
    shards = bounds.size - 1
    shard_of = np.empty(addresses.size, dtype=np.uint16)
    counts = np.zeros(shards, dtype=np.int64)
    for index in range(addresses.size):
        shard = 0
        while np.int64(addresses[index]) >= bounds[shard + 1]:
            shard += 1
        shard_of[index] = shard
        counts[shard] += 1
    starts[0] = 0
    for shard in range(shards):
        starts[shard + 1] = starts[shard] + counts[shard]
        counts[shard] = 0
    for token in range(tokens):
        for shard in range(shards):
            offsets[shard, token] = counts[shard]
        for index in range(token * per_token, (token + 1) * per_token):
            shard = shard_of[index]
            entry[starts[shard] + counts[shard]] = index
            counts[shard] += 1
    for shard in range(shards):
        offsets[shard, tokens] = counts[shard]


@dataclass(frozen=True)
class ShardEntries:
    """One shard's entries of a lookup.

    offsets: int32 `[T + 1]`. entry: int32 `[N]`, their numbers in the whole; None if they are the whole.
    """

    offsets: NDArray[np.int32]
    entry: NDArray[np.int32] | None

    def take(self, whole: FloatArray) -> FloatArray:
        return whole if self.entry is None else whole[self.entry]


def split_entries(entries: Entries) -> list[ShardEntries]:
    """The entries of every shard, in shard order."""
    shards = entries.bounds.size - 1
    if shards == 1:
        return [ShardEntries(entries.offsets, None)]
    starts = np.empty(shards + 1, dtype=np.int64)
    offsets = np.empty((shards, entries.tokens + 1), dtype=np.int32)
    entry = np.empty(entries.addresses.size, dtype=np.int32)
    _split_entries(
        entries.tokens, entries.per_token, entries.addresses, entries.bounds, starts, offsets, entry
    )
    return [ShardEntries(offsets[shard], entry[starts[shard] : starts[shard + 1]]) for shard in range(shards)]


def added_sums(parts: Sequence[FloatArray]) -> FloatArray:
    """The sum of the shards' partial sums `[T, D]`, in shard order."""
    if len(parts) == 1:
        return parts[0]
    whole: FloatArray = empty(parts[0].shape, parts[0].dtype)
    np.add(parts[0], parts[1], out=whole)
    for part in parts[2:]:
        whole += part
    return whole


# ---- fetch -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FetchedRows:
    """Distinct rows at the trainer: `values` `[U, D]` in the order of `groups.addresses`."""

    entries: Entries
    groups: Groups
    values: FloatArray

    def pooled(self) -> FloatArray:
        """`[T, D]`: the weighted sums."""
        out = empty((self.entries.tokens, self.values.shape[1]), self.values.dtype)
        pool_rows(self.values, 0, self.entries.offsets, self._inverse(), self.entries.weights, out)
        return out

    def weight_gradient(self, output_gradient: FloatArray) -> FloatArray:
        """`[T*M]`: the gradient of every entry's weight."""
        out = empty((self.entries.addresses.size,), output_gradient.dtype)
        weight_gradients(self.values, 0, self.entries.offsets, self._inverse(), output_gradient, out)
        return out

    def contributions(self, output_gradient: FloatArray) -> Contributions:
        """What the gradient of every distinct row is made of."""
        token_of_entry = self.entries.token_of_entry()
        return Contributions.grouped(self.groups, token_of_entry, self.entries.weights, output_gradient)

    def _inverse(self) -> NDArray[np.uint32]:
        return self.groups.group_of_entry().view(np.uint32)


def shard_slices(addresses: NDArray[np.uint32], bounds: NDArray[np.int64]) -> list[slice]:
    """Which of the distinct, rising addresses belong to each shard: they are sorted, so every shard has one slice."""
    edges = np.searchsorted(addresses, bounds)
    return [slice(int(begin), int(end)) for begin, end in pairwise(edges)]


def joined_rows(parts: Sequence[FloatArray]) -> FloatArray:
    """The rows that each shard has answered, in shard order, as one array `[U, D]`."""
    if len(parts) == 1:
        return parts[0]
    whole = empty((sum(len(part) for part in parts), parts[0].shape[1]), parts[0].dtype)
    return np.concatenate(parts, out=whole)


def access_sums(groups: Groups, weights: FloatArray, track: bool) -> tuple[NDArray[np.uint32], FloatArray]:
    """Accesses `[U]` and weight sums `[U]` of the distinct rows; both empty unless they are to be tracked."""
    accesses = np.empty(groups.addresses.size if track else 0, dtype=np.uint32)
    weight_sums = np.empty(accesses.size, dtype=weights.dtype)
    if track:
        _access_sums(groups.starts, groups.order, weights, accesses, weight_sums)
    return accesses, weight_sums


@compiled()
def _access_sums(
    starts: NDArray[np.int32],
    order: NDArray[np.int32],
    weights: FloatArray,
    accesses: NDArray[np.uint32],
    weight_sums: FloatArray,
) -> None:
    """Accesses and weight sum of every distinct row."""
    for group in range(starts.size - 1):
        accesses[group] = starts[group + 1] - starts[group]
        weight_sums[group] = 0
        for index in range(starts[group], starts[group + 1]):
            weight_sums[group] += weights[order[index]]
