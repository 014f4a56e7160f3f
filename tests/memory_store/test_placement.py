"""Rows, buckets, addresses and shards against their definitions, row by row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_store.errors import UsageError
from memory_store.placement import (
    BUCKETS,
    Placement,
    addresses_of,
    bucket_capacity,
    bucket_rows,
    rows_of,
)

table_rows = st.integers(1, 5000)


@given(table_rows)
def test_every_row_has_its_own_address_in_its_own_bucket(rows: int):
    everything = np.arange(rows)
    addresses = addresses_of(everything, rows)
    capacity = -(-rows // 1024)
    assert [(row % 1024) * capacity + row // 1024 for row in range(rows)] == addresses.tolist()
    assert np.unique(addresses).size == rows
    np.testing.assert_array_equal(rows_of(addresses, rows), everything)


@given(table_rows)
def test_bucket_sizes_are_those_counted(rows: int):
    counted = np.bincount(np.arange(rows) % 1024, minlength=1024)
    assert [bucket_rows(rows, bucket) for bucket in range(BUCKETS)] == counted.tolist()
    assert bucket_capacity(rows) == counted.max()


@given(table_rows, st.integers(1, 1024))
def test_shards_own_contiguous_buckets_that_cover_the_table(rows: int, shards: int):
    placement = Placement.even(shards)
    owned = [bucket for shard in range(shards) for bucket in placement.buckets(shard)]
    assert owned == list(range(1024))
    sizes = [len(placement.buckets(shard)) for shard in range(shards)]
    assert max(sizes) - min(sizes) <= 1
    # Rows sorted by address are sorted by shard, and the bounds say where a shard begins.
    bounds = placement.address_bounds(rows)
    shard_of_bucket = np.repeat(np.arange(shards), sizes)
    addresses = np.sort(addresses_of(np.arange(rows), rows))
    by_bounds = np.searchsorted(bounds, addresses, side="right") - 1
    np.testing.assert_array_equal(by_bounds, shard_of_bucket[rows_of(addresses, rows) % 1024])


def test_addresses_keep_the_shape_and_reach_the_end_of_32_bits():
    rows = 2**32 - 1024 * 1024
    last = np.array([[0, rows - 1], [1023, rows - 1024]])
    assert rows_of(addresses_of(last, rows), rows).tolist() == last.tolist()


@pytest.mark.parametrize("row", [-1, 10, 2**40, -(2**40)])
def test_a_row_outside_the_table_is_refused(row: int):
    with pytest.raises(UsageError, match=r"0\.\.9"):
        addresses_of(np.array([[3, row]]), 10)


@pytest.mark.parametrize("shards", [0, -1, 1025])
def test_an_impossible_number_of_shards_is_refused(shards: int):
    with pytest.raises(UsageError, match="1 to 1024"):
        Placement.even(shards)


def test_the_digest_tells_placements_apart():
    digests = {Placement.even(shards).digest for shards in range(1, 9)} | {Placement((0, 1024), 1).digest}
    assert len(digests) == 9
    assert Placement.even(3).digest == Placement.even(3).digest
