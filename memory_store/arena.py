"""One block of memory per shard, taken once at its start.

All arrays of a shard are cut out of one mapping, each on pages of its own, so that the memory a shard needs is
known and refused before it starts, and nothing of the table's size is allocated again while it runs.

A private block asks for huge pages: rows are read at random, and small pages would miss the address cache on
each. A shared block is a file in memory without a name, which other processes of the same user on the same
host can open at `path` while this process lives; it vanishes with the last process that uses it, so nothing
is left behind when a shard is killed. Its first page is the *clock*: what version the tables are at, and for
which epoch (see mapped_shards.py).
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress

import numpy as np
from numpy.typing import DTypeLike, NDArray

PAGE = mmap.PAGESIZE
CLOCK_VERSION, CLOCK_EPOCH, CLOCK_INCARNATION = 0, 1, 8
INCARNATION_BYTES = 64
NO_VERSION = -1  # what the clock shows while the tables are being replaced


def padded(size_bytes: int) -> int:
    """Size rounded up to whole pages, the unit in which arrays are cut out of an arena."""
    return -(-size_bytes // PAGE) * PAGE


class Arena:
    """A block of `capacity` bytes (zeros) behind its clock, handed out in page-aligned arrays.

    Raises MemoryError when it is used up.
    """

    def __init__(self, capacity: int, *, shared: bool = False) -> None:
        self.capacity = PAGE + padded(capacity)
        self.used = PAGE
        self.path = ""
        if shared:
            descriptor = os.memfd_create("pkm-arena", os.MFD_CLOEXEC)
            os.ftruncate(descriptor, self.capacity)
            self._block = mmap.mmap(descriptor, self.capacity)
            self.path = f"/proc/{os.getpid()}/fd/{descriptor}"
        else:
            # Private, because a shared anonymous mapping gets no huge pages.
            self._block = mmap.mmap(-1, self.capacity, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError, AttributeError):
            self._block.madvise(mmap.MADV_HUGEPAGE)
        self.clock: NDArray[np.int64] = np.frombuffer(self._block, dtype=np.int64, count=PAGE // 8)

    def sign(self, incarnation: str) -> None:
        """Write down whose block this is, so that who opens it can see that it is the one meant."""
        signature = incarnation.encode()[:INCARNATION_BYTES].ljust(INCARNATION_BYTES, b"\0")
        self.clock[CLOCK_INCARNATION : CLOCK_INCARNATION + INCARNATION_BYTES // 8] = np.frombuffer(
            signature, dtype=np.int64
        )

    def show(self, version: int, epoch: int) -> None:
        """Tell those who read in place what version the tables are at, and for which epoch."""
        self.clock[CLOCK_EPOCH] = epoch
        self.clock[CLOCK_VERSION] = version

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike, *, shift: int = 0) -> NDArray[np.generic]:
        """A zeroed array `shape` of `dtype` inside the block, `shift` bytes (below a page) behind a page's begin."""
        kind = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        if self.used + padded(shift + size) > self.capacity:
            raise MemoryError(
                f"The arena holds {self.capacity - PAGE} bytes, {self.used - PAGE} are used; {size} more do not fit."
            )
        array = np.frombuffer(self._block, dtype=kind, count=size // kind.itemsize, offset=self.used + shift)
        self.used += padded(shift + size)
        return array.reshape(shape)

    def offset_of(self, array: NDArray[np.generic]) -> int:
        """Where in the block an array that was cut out of it begins, in bytes."""
        return int(array.ctypes.data - self.clock.ctypes.data)
