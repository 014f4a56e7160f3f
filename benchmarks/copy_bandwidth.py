"""The limit that every kernel is held against: how fast this machine copies memory, on one core and on more.

A copy of n bytes moves 2n: it reads them and writes them. The C library writes large copies past the caches,
which is the fastest a program can do here.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

COPY_BYTES = 256 << 20


class MemoryCopy:
    """Two buffers far larger than the caches, their pages in place, and threads that copy one to the other."""

    bytes_moved = 2 * COPY_BYTES

    def __init__(self, threads_max: int) -> None:
        self._source = np.ones(COPY_BYTES, dtype=np.uint8)
        self._target = np.ones(COPY_BYTES, dtype=np.uint8)
        self._pool = ThreadPoolExecutor(threads_max)

    def run(self, threads: int) -> None:
        """Copy the whole buffer, each thread its part (NumPy copies without the GIL)."""
        edges = [COPY_BYTES * thread // threads for thread in range(threads + 1)]
        parts = [slice(begin, end) for begin, end in pairwise(edges)]
        list(self._pool.map(lambda part: np.copyto(self._target[part], self._source[part]), parts))
