"""Benchmarks refuse to time what computes something else, and count bytes as the wire does."""

import numpy as np
import pytest
import torch

from benchmarks.bags import BETAS, EPS, Bags, Found, OurTable, TorchSparseAdam, agree
from benchmarks.local_store import LocalStore
from benchmarks.plain_selection import select_plainly
from benchmarks.wire_bytes import CountedStore
from memory_store.table_spec import OptimizerSpec, TableSpec

ROWS, DIM = 2048, 16
BAGS = Bags.drawn(ROWS, DIM, bags=20, per_bag=8)
SPEC = TableSpec("memory", ROWS, DIM, optimizer=OptimizerSpec("adam", betas=BETAS, eps=EPS))


def test_equal_tables_agree():
    store = LocalStore(SPEC, lookup="pool")
    agree(OurTable(store, BAGS), TorchSparseAdam(store.read_all(), BAGS), BAGS)


def test_a_table_of_other_values_is_refused():
    store = LocalStore(SPEC, lookup="pool")
    values = store.read_all()
    values[BAGS.rows[3, 2]] += 1
    with pytest.raises(AssertionError):
        agree(OurTable(store, BAGS), TorchSparseAdam(values, BAGS), BAGS)


def test_a_table_that_changes_an_untouched_row_is_refused():
    store = LocalStore(SPEC, lookup="pool")
    untouched = int(np.setdiff1d(np.arange(ROWS), BAGS.rows)[0])

    class Spoiled(TorchSparseAdam):
        def step(self) -> Found:
            found = super().step()
            with torch.no_grad():
                self._bag.weight[untouched] += 1
            return found

    with pytest.raises(AssertionError):
        agree(OurTable(store, BAGS), Spoiled(store.read_all(), BAGS), BAGS)


def test_plain_selection_is_the_best_of_all_pairs():
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(5, 2, 8, generator=generator, dtype=torch.float64)
    sub_keys = torch.randn(2, 2, 6, 4, generator=generator, dtype=torch.float64)
    every = torch.einsum("thc,hnc->thn", queries[..., :4], sub_keys[:, 0])[..., :, None]
    every = every + torch.einsum("thc,hnc->thn", queries[..., 4:], sub_keys[:, 1])[..., None, :]
    best = every.flatten(2).topk(3, dim=-1)
    found = select_plainly(queries, sub_keys, 3)
    torch.testing.assert_close(found.scores, best.values)
    assert torch.equal(found.rows, best.indices)


def test_wire_bytes_are_those_of_the_arrays_and_little_else():
    store, shards = CountedStore(TableSpec("memory", ROWS, DIM, optimizer=OptimizerSpec("sgd")), 2), 2
    tokens, per_token = BAGS.rows.shape
    distinct = np.unique(BAGS.rows).size
    arrays = {
        # Offsets, addresses and weights, then sums; sums' gradients, then weights' gradients.
        "pool": 4 * (shards * (tokens + 1) + 3 * tokens * per_token + 2 * shards * tokens * DIM),
        # Addresses, then rows; addresses and rows' gradients.
        "fetch": 4 * distinct * (2 + 2 * DIM),
    }
    for kind in ("pool", "fetch"):
        counted = store.bytes_of(kind, BAGS)
        assert arrays[kind] < counted < arrays[kind] + 4000
