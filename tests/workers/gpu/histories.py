"""Random lookups and steps of a table, the same for the same seed, whatever kind of table it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from memory_store import StoreClient, TableSpec, in_process_store
from memory_store.table_handle import TableHandle
from workers.lookup import begin_lookup

CPU = torch.device("cpu")


def small_table(**changes: Any) -> TableSpec:
    """Rows that don't fill the buckets evenly."""
    return TableSpec("memory", 2500, 6, seed=3, **changes)


class History:
    """A writer of one table; most rows of its lookups come from a few hot ones. `seen` is all it was answered."""

    def __init__(self, store: StoreClient, table: TableHandle, seed: int) -> None:
        self.store, self.table, self.random = store, table, np.random.default_rng(seed)
        self.seen: list[Tensor] = []

    def look_up(self, *, track: bool = False) -> None:
        """Some tokens, and their backward pass."""
        shape = int(self.random.integers(1, 8)), 4
        hot, cold = self.random.integers(0, 40, shape), self.random.integers(0, self.table.rows, shape)
        rows = torch.from_numpy(np.where(self.random.random(shape) < 0.7, hot, cold))
        weights = torch.from_numpy(self.random.random(shape, dtype=np.float32)).requires_grad_()
        gradient = torch.from_numpy(self.random.standard_normal((shape[0], self.table.dim), dtype=np.float32))
        output = begin_lookup(self.table, rows, weights, track=track)()
        output.backward(gradient)
        assert weights.grad is not None
        self.seen += [output.detach().clone(), weights.grad.clone()]

    def step(self, clip: float | None = None, *, skip: bool = False) -> None:
        for _ in range(2):  # as two layers of one table look it up
            self.look_up()
        if skip:
            self.store.skip_step()
        else:
            self.store.step({"memory": 0.1}, {} if clip is None else {"memory": clip})

    def run(self, steps: int = 50) -> History:
        for step in range(steps):
            self.step(clip=0.5 if step % 7 == 3 else None, skip=step % 11 == 5)
        return self

    def everything(self) -> Tensor:
        """All rows, by a lookup."""
        rows = torch.arange(self.table.rows)[:, None]
        with torch.no_grad():
            return begin_lookup(self.table, rows, torch.ones(self.table.rows, 1))()

    def equals(self, other: History) -> bool:
        """Whether both were answered the same bytes, and would be if they asked for all rows."""
        pairs = zip([*self.seen, self.everything()], [*other.seen, other.everything()], strict=True)
        return all(torch.equal(ours, theirs) for ours, theirs in pairs)


def ordinary(seed: int, shards: int = 2, **changes: Any) -> History:
    """A history of a table in the shards of one process, of which rows are fetched."""
    store = in_process_store([small_table(**changes)], shards, lookup="fetch")
    return History(store, store.table("memory"), seed)
