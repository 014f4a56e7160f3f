"""One table of a store, as those see it who only read rows and give gradients."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from memory_store.calls import Waiting
from memory_store.kernels import FloatArray
from memory_store.lookups import Lookup
from memory_store.table_spec import TableSpec


class LookingUp(Protocol):
    """Who answers lookups: the client."""

    def begin_lookup(
        self, spec: TableSpec, rows: NDArray[np.int64], weights: FloatArray, *, keep: bool, track: bool
    ) -> Waiting[Lookup]: ...


class TableHandle:
    """One table as a layer sees it."""

    def __init__(self, client: LookingUp, spec: TableSpec) -> None:
        self._client = client
        self.spec = spec
        self.name, self.rows, self.dim = spec.name, spec.rows, spec.dim

    def begin_lookup(
        self, rows: NDArray[np.int64], weights: FloatArray, *, keep: bool, track: bool = False
    ) -> Waiting[Lookup]:
        """Ask for the weighted sum of rows of every token: rows int64 `[T, M]`, weights `[T, M]`.

        `keep` makes `Lookup.backward` possible; `track` counts the accesses (for evaluation). Call what comes
        back once, before the step, for the lookup with its output `[T, D]`. Raises UsageError for a row outside
        the table; the call, StoreError if a shard refuses or does not answer in time.
        """
        return self._client.begin_lookup(self.spec, rows, weights, keep=keep, track=track)

    def lookup(
        self, rows: NDArray[np.int64], weights: FloatArray, *, keep: bool, track: bool = False
    ) -> Lookup:
        """`begin_lookup` and the wait for it."""
        return self.begin_lookup(rows, weights, keep=keep, track=track)()
