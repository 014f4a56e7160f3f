"""One block of memory per shard, taken once at its start.

All arrays of a shard are cut out of one anonymous mapping, each on a page boundary, so that the memory a
shard needs is known and refused before it starts, and nothing of the table's size is allocated again while it
runs. The mapping asks for huge pages: rows are read at random, and small pages would miss the address cache
on each.
"""

from __future__ import annotations

import mmap
from contextlib import suppress

import numpy as np
from numpy.typing import DTypeLike, NDArray

_PAGE = mmap.PAGESIZE


def padded(size_bytes: int) -> int:
    """Size rounded up to whole pages, the unit in which arrays are cut out of an arena."""
    return -(-size_bytes // _PAGE) * _PAGE


class Arena:
    """A block of `capacity` bytes (zeros), handed out in page-aligned arrays.

    Raises MemoryError when it is used up.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = max(padded(capacity), _PAGE)
        self.used = 0
        # Private, because a shared anonymous mapping gets no huge pages.
        self._block = mmap.mmap(-1, self.capacity, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError, AttributeError):
            self._block.madvise(mmap.MADV_HUGEPAGE)

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[np.generic]:
        """A zeroed array `shape` of `dtype` inside the block."""
        kind = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        if self.used + padded(size) > self.capacity:
            raise MemoryError(
                f"The arena holds {self.capacity} bytes, {self.used} are used; {size} more do not fit."
            )
        array = np.frombuffer(self._block, dtype=kind, count=size // kind.itemsize, offset=self.used)
        self.used += padded(size)
        return array.reshape(shape)
