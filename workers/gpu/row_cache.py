"""Which rows of a table are kept on the device: the ones that were looked up most, and whether they are still what they were.

Pure bookkeeping in arrays on the host, by address: 8 bytes for every row of the table. A row has a *slot*, or none; a slot is
*fresh* if its copy is of the version that lookups read now. Who has touched a row with an update must say so; the slot is
then stale until it is filled again. Lookups count every different row once. `choose` gives the slots to the rows with the
highest counts and halves all counts, so that rows which were hot long ago give way; what it costs depends on the rows that
were looked up lately, not on the size of the table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


class RowCache:
    """`capacity` slots for a table of `addresses` rows."""

    def __init__(self, capacity: int, addresses: int) -> None:
        self.capacity = min(capacity, addresses)
        self._slot_of: NDArray[np.int32] = np.full(addresses, NO_SLOT, dtype=np.int32)
        self._address_of: NDArray[np.int64] = np.full(self.capacity, -1, dtype=np.int64)
        self._fresh: NDArray[np.bool_] = np.zeros(self.capacity, dtype=np.bool_)
        self._counts: NDArray[np.uint32] = np.zeros(addresses, dtype=np.uint32)
        # The rows with a count above 0, each once.
        self._counted: list[NDArray[np.uint32]] = []
        self.found = self.looked_up = 0

    def slots(self, addresses: NDArray[np.uint32]) -> NDArray[np.int32]:
        """The slot of each row, fresh or not, or NO_SLOT."""
        out: NDArray[np.int32] = empty(addresses.shape, np.int32)
        return self._slot_of.take(
            addresses, out=out, mode="clip"
        )  # no address is clipped, and nothing is copied twice

    def find(self, addresses: NDArray[np.uint32]) -> Found:
        """Which of the distinct rows have a fresh copy; counts the rows."""
        self._counted.append(addresses[self._counts[addresses] == 0])
        self._counts[addresses] += np.uint32(1)
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

    def choose(self) -> None:
        """Give the slots to the rows that were looked up most; those that had one keep it, with their copy."""
        counted = np.concatenate([np.empty(0, dtype=np.uint32), *self._counted])
        hottest = counted
        if counted.size > self.capacity:
            first = counted.size - self.capacity
            hottest = counted[np.argpartition(self._counts[counted], first)[first:]]
        self._give_slots(hottest)
        self._counts[counted] >>= np.uint32(1)
        self._counted = [counted[self._counts[counted] > 0]]

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
