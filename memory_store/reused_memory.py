"""Large arrays out of memory that is used again, because fresh memory costs a page fault for each of its pages.

A message of 100 MB in fresh memory spends a third of its time in the kernel, which hands out zeroed pages and
takes them back. So the memory of a large array is kept here when its last user lets go of it, and given to
the next array of about that size; and the C library is told to keep the memory of the messages that gRPC
cuts it into. A trainer with a GPU has the blocks page-locked, so that the GPU copies answers of shards where they lie.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

KEPT_BYTES_MAX = 512 << 20
SMALL_BYTES = 1 << 20  # the C library reuses smaller blocks well enough
LINE_BYTES = 64
SIZES_PER_OCTAVE = 4  # of blocks: at most a quarter of a block is idle

# mallopt's names of what is set below, see mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


class _Lease:
    """Who looks at a block: the arrays made of it keep this alive, and its end gives the block back."""

    def __init__(self, block: NDArray[np.uint8]) -> None:
        self.__array_interface__ = block.__array_interface__


def aligned(size: int) -> NDArray[np.uint8]:
    """`size` bytes from the begin of a cache line."""
    block = np.empty(size + LINE_BYTES, dtype=np.uint8)
    begin = -block.ctypes.data % LINE_BYTES
    return block[begin : begin + size]


class ReusedMemory:
    """Blocks nobody uses at the moment, `kept_bytes_max` bytes of them at most. Usable from many threads.

    New blocks are of `allocate`, given their bytes, of which there are `sizes_per_octave` between two powers of two. Arrays
    below `small_bytes` are ordinary ones.
    """

    def __init__(
        self,
        kept_bytes_max: int = KEPT_BYTES_MAX,
        allocate: Callable[[int], NDArray[np.uint8]] = aligned,
        small_bytes: int = SMALL_BYTES,
        sizes_per_octave: int = SIZES_PER_OCTAVE,
    ) -> None:
        self.allocate, self.sizes_per_octave = allocate, sizes_per_octave
        self._kept_bytes_max, self._small_bytes = kept_bytes_max, small_bytes
        self._free: list[NDArray[np.uint8]] = []

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array `shape` of `dtype` with any content, nobody else's until its last view is gone.

        Raises MemoryError as `numpy.empty` does.
        """
        kind = np.dtype(dtype)
        size = kind.itemsize * math.prod(shape)
        if size < self._small_bytes:
            return np.empty(shape, kind)
        block = self._taken(_block_bytes(max(size, LINE_BYTES), self.sizes_per_octave))
        lease = _Lease(block)
        weakref.finalize(lease, self._give_back, block).atexit = False
        return np.asarray(lease)[:size].view(kind).reshape(shape)

    # Neither takes a lock: a lease may end wherever Python collects garbage, in a thread that is in here too.

    def _taken(self, size: int) -> NDArray[np.uint8]:
        others = []
        try:
            while True:
                block = self._free.pop()
                if block.size == size:
                    return block
                others.append(block)
        except IndexError:
            return self.allocate(size)
        finally:
            self._free[:0] = others[::-1]

    def _give_back(self, block: NDArray[np.uint8]) -> None:
        if block.size > self._kept_bytes_max:
            return  # for it all others would have to go
        self._free.append(block)
        while sum(kept.size for kept in tuple(self._free)) > self._kept_bytes_max:
            try:
                self._free.pop(0)  # the one that was not wanted for longest
            except IndexError:
                return


def _block_bytes(size: int, per_octave: int) -> int:
    """The size of the block for `size` bytes: a power of two, or one of the steps between two of them."""
    step = max(1, (1 << (size - 1).bit_length() - 1) // per_octave)
    return -(-size // step) * step


_MEMORY = ReusedMemory()
empty = _MEMORY.empty


def allocate_with(allocate: Callable[[int], NDArray[np.uint8]], sizes_per_octave: int) -> None:
    """Have new blocks of `empty` made by `allocate`, given their bytes: in this process, and for good."""
    _MEMORY.allocate, _MEMORY.sizes_per_octave = allocate, sizes_per_octave


def keep_freed_memory() -> None:
    """Have the C library keep the memory of freed messages (blocks of up to 32 MiB) for the next ones.

    It does so for the whole process, and for good. Does nothing where the C library knows no such setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    mallopt(_MMAP_THRESHOLD, 32 << 20)
    mallopt(_TRIM_THRESHOLD, 512 << 20)
    mallopt(_TOP_PAD, 16 << 20)
