"""Grouping the entries of a batch by the row they select.

An entry is one (token, head, selected key). A step of T tokens has T*M entries, many of which share a row.
All that follows (fetching a row once, summing its gradients before one update) needs them grouped: `order`
lists the entries sorted by address, entries of one address in their original order, so sums are always made
in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memory_store.compilation import compiled

_DIGIT_BITS = 11
_DIGITS = 1 << _DIGIT_BITS


@dataclass(frozen=True)
class Groups:
    """Entries grouped by address.

    addresses: uint32 `[U]`, distinct, ascending. starts: int32 `[U + 1]`. order: int32 `[N]`: entries of
    group `u` are `order[starts[u] : starts[u + 1]]`, ascending.
    """

    addresses: NDArray[np.uint32]
    starts: NDArray[np.int32]
    order: NDArray[np.int32]

    def group_of_entry(self) -> NDArray[np.int32]:
        """For each entry the number of its group: int32 `[N]`."""
        inverse = np.empty(self.order.size, dtype=np.int32)
        _invert(self.starts, self.order, inverse)
        return inverse


@compiled()
def _sort(
    addresses: NDArray[np.uint32], passes: int, order: NDArray[np.int32], spare: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Stable radix sort of entry numbers by address, least significant digit first."""
    entries = addresses.size
    for index in range(entries):
        order[index] = index
    counts = np.empty(_DIGITS + 1, dtype=np.int64)
    for digit in range(passes):
        shift = np.uint32(digit * _DIGIT_BITS)
        counts[:] = 0
        for index in range(entries):
            counts[((addresses[index] >> shift) & np.uint32(_DIGITS - 1)) + 1] += 1
        for value in range(_DIGITS):
            counts[value + 1] += counts[value]
        for index in range(entries):
            entry = order[index]
            value = (addresses[entry] >> shift) & np.uint32(_DIGITS - 1)
            spare[counts[value]] = entry
            counts[value] += 1
        order, spare = spare, order
    return order


@compiled()
def _boundaries(
    addresses: NDArray[np.uint32],
    order: NDArray[np.int32],
    distinct: NDArray[np.uint32],
    starts: NDArray[np.int32],
) -> int:
    groups = 0
    for index in range(order.size):
        address = addresses[order[index]]
        if groups == 0 or address != distinct[groups - 1]:
            distinct[groups] = address
            starts[groups] = index
            groups += 1
    starts[groups] = order.size
    return groups


@compiled()
def _invert(starts: NDArray[np.int32], order: NDArray[np.int32], inverse: NDArray[np.int32]) -> None:
    for group in range(starts.size - 1):
        for index in range(starts[group], starts[group + 1]):
            inverse[order[index]] = group


def group_by_address(addresses: NDArray[np.uint32]) -> Groups:
    """Group the entries of `addresses` (uint32 `[N]`) by equal address."""
    entries = addresses.size
    order, spare = np.empty(entries, dtype=np.int32), np.empty(entries, dtype=np.int32)
    largest = int(addresses.max()) if entries else 0
    passes = max(1, -(-largest.bit_length() // _DIGIT_BITS))
    order = _sort(addresses, passes, order, spare)
    distinct, starts = np.empty(entries, dtype=np.uint32), np.empty(entries + 1, dtype=np.int32)
    groups = _boundaries(addresses, order, distinct, starts)
    return Groups(distinct[:groups].copy(), starts[: groups + 1].copy(), order)


@compiled()
def count_distinct(addresses: NDArray[np.uint32], address_end: int) -> int:
    """How many different addresses there are in `addresses` (uint32 `[N]`), all below `address_end`."""
    seen = np.zeros((address_end >> 6) + 1, dtype=np.uint64)
    distinct = 0
    for index in range(addresses.size):
        word, bit = (
            addresses[index] >> np.uint32(6),
            np.uint64(1) << np.uint64(addresses[index] & np.uint32(63)),
        )
        if seen[word] & bit == 0:
            seen[word] |= bit
            distinct += 1
    return distinct
