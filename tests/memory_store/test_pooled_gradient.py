"""The backward pass of a pooled lookup has the same bytes token by token, and row by row for many entries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from memory_store import pooled_gradient
from memory_store.opening import in_process_store
from memory_store.table_spec import OptimizerSpec, TableSpec

ROWS, TOKENS, PER_TOKEN, DIM = 1024, 300, 8, 12


def trained(dtype: Any, shards: int, lookups: int) -> tuple[list[bytes], bytes]:
    """Steps with several lookups each: the gradients of all weights, and what the table then holds."""
    spec = TableSpec("memory", ROWS, DIM, dtype, optimizer=OptimizerSpec("rowwise_adagrad"))
    store = in_process_store([spec], shards, lookup="pool")
    table, chance, gradients = store.table("memory"), np.random.default_rng(0), []
    for _ in range(3):
        found = [
            table.lookup(
                chance.integers(ROWS, size=(TOKENS, PER_TOKEN)),
                chance.random((TOKENS, PER_TOKEN)).astype(spec.compute_dtype),
                keep=True,
            )
            for _ in range(lookups)
        ]
        for lookup in found:
            gradient = chance.standard_normal((TOKENS, DIM)).astype(spec.compute_dtype)
            gradients.append(lookup.backward(gradient).tobytes())
        store.step({"memory": 0.1})
    everything = np.arange(ROWS)[:, None]
    weights = np.ones(everything.shape, dtype=spec.compute_dtype)
    return gradients, table.lookup(everything, weights, keep=False).output.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize(("shards", "lookups"), [(1, 1), (1, 2), (3, 1)])
def test_both_ways_give_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, dtype: Any, shards: int, lookups: int
):
    assert TOKENS * PER_TOKEN >= pooled_gradient._ENTRIES_PER_ROW * ROWS
    by_row = trained(dtype, shards, lookups)
    monkeypatch.setattr(pooled_gradient, "_ENTRIES_PER_ROW", 1000)
    assert trained(dtype, shards, lookups) == by_row
