"""Which rows of a table are kept on the device: the ones that were looked up most, and whether they are still what they were.

Pure bookkeeping in arrays on the host, by address: 8 bytes for every row of the table. A row has a *slot*, or none; a slot is
*fresh* if its copy is of the version that lookups read now. Who has touched a row with an update must say so; the slot is
then stale until it is filled again. Lookups count every different row once. A choice gives the slots to the rows with the
highest counts and halves all counts, so that rows which were hot long ago give way; what it costs depends on the rows that
were looked up lately, not on the size of the table. A thread counts and chooses beside the steps; what comes of it does not
depend on who is faster.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memory_store.calls import Waiting
from memory_store.compilation import compiled
from memory_store.reused_memory import empty

NO_SLOT = -1


@dataclass(frozen=True)
class Found:
    """Of U rows, slots int32 `[U]`: the fresh slot of each, or NO_SLOT; missing int32: which have none, ascending."""

    slots: NDArray[np.int32]
    missing: NDArray[np.int32]


@compiled()
def _find(
    addresses: NDArray[np.uint32],
    slot_of: NDArray[np.int32],
    fresh: NDArray[np.bool_],
    slots: NDArray[np.int32],
    missing: NDArray[np.int32],
) -> int:
    misses = 0
    for index in range(addresses.size):
        slot = slot_of[addresses[index]]
        if slot == NO_SLOT or not fresh[slot]:
            slots[index] = NO_SLOT
            missing[misses] = index
            misses += 1
        else:
            slots[index] = slot
    return misses


@compiled()
def _count(addresses: NDArray[np.uint32], counts: NDArray[np.uint32], first: NDArray[np.uint32]) -> int:
    """Add 1 for each of distinct rows; how many had 0, which `first` begins with."""
    firsts = 0
    for index in range(addresses.size):
        address = addresses[index]
        if counts[address] == 0:
            first[firsts] = address
            firsts += 1
        counts[address] += np.uint32(1)
    return firsts


class _RowCounts:
    """How often rows were looked up lately. Counted in a thread of its own, which takes one thing after the other."""

    def __init__(self, addresses: int) -> None:
        self._counts: NDArray[np.uint32] = np.zeros(addresses, dtype=np.uint32)
        # The rows with a count above 0, each once.
        self._counted: list[NDArray[np.uint32]] = []
        self._counting: list[Future[None]] = []
        self._thread = ThreadPoolExecutor(1, "row counts")

    def begin_count(self, addresses: NDArray[np.uint32]) -> None:
        """Begin to count a lookup of distinct rows, which nobody may write to."""
        self._counting.append(self._thread.submit(self._count, addresses))

    def begin_choice(self, count: int) -> Future[NDArray[np.uint32]]:
        """Begin to choose the rows, `count` at most, that were looked up most so far, and to halve all counts."""
        counting, self._counting = self._counting, []
        return self._thread.submit(self._choose, count, counting)

    def _count(self, addresses: NDArray[np.uint32]) -> None:
        first = empty(addresses.shape, np.uint32)
        self._counted.append(first[: _count(addresses, self._counts, first)].copy())

    def _choose(self, count: int, counting: list[Future[None]]) -> NDArray[np.uint32]:
        for lookup in counting:
            lookup.result()  # has ended; raises what went wrong, so that no choice is made of half of the lookups
        counted = np.concatenate([np.empty(0, dtype=np.uint32), *self._counted])
        counts = self._counts[counted]
        hottest = counted
        if counted.size > count:
            first = counted.size - count
            hottest = counted[np.argpartition(counts, first)[first:]]
        self._counts[counted] = counts >> np.uint32(1)
        self._counted = [counted[counts > 1]]
        return hottest


class RowCache:
    """`capacity` slots for a table of `addresses` rows."""

    def __init__(self, capacity: int, addresses: int) -> None:
        self.capacity = min(capacity, addresses)
        self._slot_of: NDArray[np.int32] = np.full(addresses, NO_SLOT, dtype=np.int32)
        self._address_of: NDArray[np.int64] = np.full(self.capacity, -1, dtype=np.int64)
        self._fresh: NDArray[np.bool_] = np.zeros(self.capacity, dtype=np.bool_)
        self._counts = _RowCounts(addresses)
        self.found = self.looked_up = 0

    def slots(self, addresses: NDArray[np.uint32]) -> NDArray[np.int32]:
        """The slot of each row, fresh or not, or NO_SLOT."""
        out: NDArray[np.int32] = empty(addresses.shape, np.int32)
        return self._slot_of.take(
            addresses, out=out, mode="clip"
        )  # no address is clipped, and nothing is copied twice

    def find(self, addresses: NDArray[np.uint32]) -> Found:
        """Which of the distinct rows have a fresh copy; counts the rows."""
        self._counts.begin_count(addresses)
        slots, missing = empty(addresses.shape, np.int32), empty(addresses.shape, np.int32)
        found = Found(slots, missing[: _find(addresses, self._slot_of, self._fresh, slots, missing)])
        self.found += addresses.size - found.missing.size
        self.looked_up += addresses.size
        return found

    def filled(self, slots: NDArray[np.int32]) -> None:
        """These slots hold their rows as lookups read them now."""
        self._fresh[slots] = True

    def touched(self, addresses: NDArray[np.uint32]) -> None:
        """An update changes these rows."""
        slots = self._slot_of[addresses]
        self._fresh[slots[slots != NO_SLOT]] = False

    def all_touched(self) -> None:
        """Any row may have changed."""
        self._fresh[:] = False

    def stale(self) -> NDArray[np.uint32]:
        """The rows whose slots are to be filled, ascending."""
        return np.sort(self._address_of[(self._address_of >= 0) & ~self._fresh]).astype(np.uint32)

    def begin_choice(self) -> Waiting[None]:
        """Begin to choose the rows that were looked up most; what comes back waits, and gives them the slots.

        Those that had one keep it, with their copy.
        """
        chosen = self._counts.begin_choice(self.capacity)
        return lambda: self._give_slots(chosen.result())

    def _give_slots(self, rows: NDArray[np.uint32]) -> None:
        """These rows have the slots, and no others."""
        kept = np.zeros(self.capacity, dtype=np.bool_)
        held = self._slot_of[rows]
        kept[held[held != NO_SLOT]] = True
        leaving = np.flatnonzero(~kept & (self._address_of >= 0))
        self._slot_of[self._address_of[leaving]] = NO_SLOT
        self._address_of[leaving] = -1
        entering = rows[held == NO_SLOT]
        free = np.flatnonzero(~kept)[: entering.size]
        self._address_of[free], self._slot_of[entering] = entering, free
        self._fresh[~kept] = False
