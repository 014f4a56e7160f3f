"""A store inside this process whose rows a benchmark can read and set, to start a peer from the same values."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memory_store.client import StoreClient
from memory_store.lookups import LookupKind
from memory_store.opening import attach
from memory_store.placement import Placement, addresses_of
from memory_store.shard import ShardCore
from memory_store.shard_host import ShardHost
from memory_store.table_spec import TableSpec


class LocalStore:
    """One table in one shard, in this process, with a client that is its only writer."""

    def __init__(self, spec: TableSpec, lookup: LookupKind = "auto") -> None:
        core = ShardCore([spec], Placement.even(1), 0, incarnation="benchmark")
        self._values: NDArray[np.float32] = core.tables[spec.name].values
        self.spec = spec
        self.client: StoreClient = attach([ShardHost(core)], [spec], lookup=lookup)
        self.client.take_over()
        self.table = self.client.table(spec.name)

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The values of `rows` (int64 `[R]`): `[R, D]`."""
        return self._values[addresses_of(rows, self.spec.rows)]

    def read_all(self) -> NDArray[np.float32]:
        """The values of all rows in their order: `[K, D]`."""
        return self.read(np.arange(self.spec.rows))

    def write_all(self, values: NDArray[np.float32]) -> None:
        """Set the values of all rows, `[K, D]`."""
        self._values[addresses_of(np.arange(self.spec.rows), self.spec.rows)] = values

    def step(self, learning_rate: float) -> None:
        """Apply the row optimizer to what has been contributed."""
        self.client.step({self.spec.name: learning_rate})
        self.client.synchronise()
