"""Grouping the entries of a batch by the row they select.

An entry is one (token, head, selected key). A step of T tokens has T*M entries, many of which share a row.
All that follows (fetching a row once, summing its gradients before one update) needs them grouped: `order`
lists the entries sorted by address, entries of one address in their original order, so sums are always made
in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory_store.compilation import compiled
from memory_store.reused_memory import empty

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
        inverse = empty((self.order.size,), np.int32)
        _invert(self.starts, self.order, inverse)
        return inverse


@compiled()
def _sort(
    addresses: NDArray[np.uint32], passes: int, entries: NDArray[np.uint64], spare: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """Stable radix sort of entries by address, least significant digit first: the address above the entry's number."""
    counts = np.zeros((passes, _DIGITS + 1), dtype=np.int64)
    for digit in range(passes):
        for index in range(addresses.size):
            counts[digit, _digit(addresses[index], digit) + 1] += 1
        for value in range(_DIGITS):
            counts[digit, value + 1] += counts[digit, value]
    for index in range(addresses.size):
        value = _digit(addresses[index], 0)
        entries[counts[0, value]] = np.uint64(addresses[index]) << np.uint64(32) | np.uint64(index)
        counts[0, value] += 1
    for digit in range(1, passes):
        for index in range(addresses.size):
            value = _digit(np.uint32(entries[index] >> np.uint64(32)), digit)
            spare[counts[digit, value]] = entries[index]
            counts[digit, value] += 1
        entries, spare = spare, entries
    return entries


@compiled(inline=True)
def _digit(address: np.uint32, digit: int) -> Any:
    return np.int64((address >> np.uint32(digit * _DIGIT_BITS)) & np.uint32(_DIGITS - 1))


@compiled()
def _boundaries(
    entries: NDArray[np.uint64],
    distinct: NDArray[np.uint32],
    starts: NDArray[np.int32],
    order: NDArray[np.int32],
) -> int:
    groups = 0
    for index in range(entries.size):
        address = np.uint32(entries[index] >> np.uint64(32))
        order[index] = np.int32(entries[index] & np.uint64(0xFFFFFFFF))
        if groups == 0 or address != distinct[groups - 1]:
            distinct[groups] = address
            starts[groups] = index
            groups += 1
    starts[groups] = entries.size
    return groups


@compiled()
def _invert(starts: NDArray[np.int32], order: NDArray[np.int32], inverse: NDArray[np.int32]) -> None:
    for group in range(starts.size - 1):
        for index in range(starts[group], starts[group + 1]):
            inverse[order[index]] = group


def group_by_address(addresses: NDArray[np.uint32]) -> Groups:
    """Group the entries of `addresses` (uint32 `[N]`) by equal address."""
    size = addresses.size
    largest = int(addresses.max()) if size else 0
    passes = max(1, -(-largest.bit_length() // _DIGIT_BITS))
    entries = _sort(addresses, passes, empty((size,), np.uint64), empty((size,), np.uint64))
    distinct, starts = empty((size,), np.uint32), empty((size + 1,), np.int32)
    order = empty((size,), np.int32)
    groups = _boundaries(entries, distinct, starts, order)
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
