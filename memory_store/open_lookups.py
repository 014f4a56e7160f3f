"""A lookup between its forward and its backward pass, and what each kind of lookup does with the gradient.

The row gradients are on their way to the shards when `begin_backward` returns; `StoreClient.step` waits for them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from memory_store import messages as m
from memory_store.calls import Waiting, expect
from memory_store.errors import NonFiniteGradientError, StoreError
from memory_store.kernels import FloatArray, weight_gradients
from memory_store.lookups import Entries, FetchedRows, ShardEntries, shard_slices, split_entries
from memory_store.optimizers import Contributions, sum_by_row
from memory_store.reused_memory import empty

Contributing = type[m.RowGradient] | type[m.PoolGradient] | type[m.EntryGradient] | type[m.ReplaceRows]


class Versioned(Protocol):
    version: int


class Contributor(Versioned, Protocol):
    """Who takes contributions to the step under way: the client."""

    waiting: Callable[[], AbstractContextManager[object]]

    def contribute(self, shard: int, make: Contributing, **parts: Any) -> Future[m.Reply]: ...


class BackwardOnce:
    """A lookup has one backward pass, if it was made with keep, and before the tables leave its version."""

    def __init__(self, client: Versioned, version: int, keep: bool) -> None:
        self._client, self._version, self._awaited = client, version, keep

    def begin(self) -> None:
        """The backward pass begins. Raises StoreError if it must not."""
        if not self._awaited:
            raise StoreError("This lookup was made without keep, or its backward pass has run already.")
        if self._version != self._client.version:
            raise StoreError(
                f"This lookup was made at version {self._version}, the tables are at {self._client.version}: "
                "run the backward pass before the step."
            )
        self._awaited = False


class OpenLookup(ABC):
    """What both lookups have in common: one backward pass, before the step of the lookup is over."""

    def __init__(
        self, client: Contributor, version: int, keep: bool, entries: Entries, output: FloatArray
    ) -> None:
        self.output = output
        self._client = client
        self._backward = BackwardOnce(client, version, keep)
        self._shape = (entries.tokens, entries.per_token)

    @abstractmethod
    def begin_backward(self, output_gradient: FloatArray) -> Waiting[FloatArray]:
        """See `Lookup`."""

    def backward(self, output_gradient: FloatArray) -> FloatArray:
        """See `Lookup`."""
        return self.begin_backward(output_gradient)()

    def _checked(self, output_gradient: FloatArray) -> FloatArray:
        if output_gradient.shape != self.output.shape:
            raise StoreError(
                f"A gradient {output_gradient.shape} came for an output {self.output.shape}; "
                "they must have one shape."
            )
        self._backward.begin()
        return np.ascontiguousarray(output_gradient, dtype=self.output.dtype)


class PooledLookup(OpenLookup):
    def __init__(
        self,
        client: Contributor,
        version: int,
        keep: bool,
        entries: Entries,
        output: FloatArray,
        number: int,
        parts: list[ShardEntries],
    ) -> None:
        super().__init__(client, version, keep, entries, output)
        self._number, self._parts = number, parts

    def begin_backward(self, output_gradient: FloatArray) -> Waiting[FloatArray]:
        gradient = self._checked(output_gradient)
        futures = [
            self._client.contribute(shard, m.PoolGradient, lookup=self._number, output_gradient=gradient)
            for shard in range(len(self._parts))
        ]

        def finish() -> FloatArray:
            with self._client.waiting():
                replies = [
                    _gradient(future, part.offsets[-1], gradient)
                    for future, part in zip(futures, self._parts, strict=True)
                ]
            if self._parts[0].entry is None:
                return replies[0].reshape(self._shape)
            whole = empty((sum(reply.size for reply in replies),), gradient.dtype)
            for part, reply in zip(self._parts, replies, strict=True):
                whole[part.entry] = reply
            return whole.reshape(self._shape)

        return finish


def _gradient(future: Future[m.Reply], entries: int, like: FloatArray) -> FloatArray:
    """The weights' gradient; not a number where the shard has refused what it would be made of, which the step will say."""
    try:
        return expect(future, m.WeightGradient).gradient
    except NonFiniteGradientError:
        return np.full(entries, np.nan, dtype=like.dtype)


def contribute_rows(
    client: Contributor, table: str, bounds: NDArray[np.int64], contributions: Contributions
) -> None:
    """Sum up the gradient of every row, and send it to the row's shard; bounds int64 `[S + 1]`: see `Entries`."""
    gradients = sum_by_row(contributions)
    for shard, part in enumerate(shard_slices(contributions.addresses, bounds)):
        client.contribute(
            shard,
            m.RowGradient,
            table=table,
            addresses=contributions.addresses[part],
            gradients=gradients[part],
        )


class FetchedLookup(OpenLookup):
    def __init__(
        self,
        client: Contributor,
        version: int,
        keep: bool,
        entries: Entries,
        output: FloatArray,
        table: str,
        rows: FetchedRows,
    ) -> None:
        super().__init__(client, version, keep, entries, output)
        self._table, self._rows, self._bounds = table, rows, entries.bounds

    def begin_backward(self, output_gradient: FloatArray) -> Waiting[FloatArray]:
        gradient = self._checked(output_gradient)
        contribute_rows(self._client, self._table, self._bounds, self._rows.contributions(gradient))
        return lambda: self._rows.weight_gradient(gradient).reshape(self._shape)


class InPlaceLookup(OpenLookup):
    """Rows read in place: the weights' gradient is made here, the entries travel with the output gradient."""

    def __init__(
        self,
        client: Contributor,
        version: int,
        keep: bool,
        entries: Entries,
        output: FloatArray,
        table: str,
        values: NDArray[Any],
    ) -> None:
        super().__init__(client, version, keep, entries, output)
        self._table, self._entries, self._values = table, entries, values

    def begin_backward(self, output_gradient: FloatArray) -> Waiting[FloatArray]:
        gradient = self._checked(output_gradient)
        entries = self._entries
        for shard, part in enumerate(split_entries(entries)):
            self._client.contribute(
                shard,
                m.EntryGradient,
                table=self._table,
                offsets=part.offsets,
                addresses=part.take(entries.addresses),
                weights=part.take(entries.weights),
                output_gradient=gradient,
            )

        def finish() -> FloatArray:
            weight_gradient = empty((entries.addresses.size,), gradient.dtype)
            weight_gradients(self._values, 0, entries.offsets, entries.addresses, gradient, weight_gradient)
            return weight_gradient.reshape(self._shape)

        return finish
