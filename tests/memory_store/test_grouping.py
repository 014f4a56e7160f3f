"""Grouping entries by address, against NumPy's sorting."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memory_store.grouping import count_distinct, group_by_address

# Few different addresses make long groups; all widths make all numbers of radix passes.
addresses = st.one_of(
    st.lists(st.integers(0, 5)),
    st.lists(st.integers(0, 2**11)),
    st.lists(st.integers(0, 2**32 - 1)),
).map(lambda numbers: np.array(numbers, dtype=np.uint32))


@given(addresses)
def test_groups_are_the_distinct_addresses_with_their_entries_in_order(entries: np.ndarray):
    groups = group_by_address(entries)
    distinct, inverse, counts = np.unique(entries, return_inverse=True, return_counts=True)
    np.testing.assert_array_equal(groups.addresses, distinct)
    np.testing.assert_array_equal(np.diff(groups.starts), counts)
    np.testing.assert_array_equal(groups.order, np.argsort(entries, kind="stable"))
    np.testing.assert_array_equal(groups.group_of_entry(), inverse)
    assert (groups.starts[0], groups.starts[-1]) == (0, entries.size)


def test_many_entries():
    entries = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32) // 40_000
    groups = group_by_address(entries)
    np.testing.assert_array_equal(groups.order, np.argsort(entries, kind="stable"))
    np.testing.assert_array_equal(groups.addresses, np.unique(entries))


@given(st.lists(st.integers(0, 300)))
def test_distinct_addresses_are_counted(numbers: list[int]):
    assert count_distinct(np.array(numbers, dtype=np.uint32), 301) == len(set(numbers))
