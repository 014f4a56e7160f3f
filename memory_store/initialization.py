"""The first values of a table: a pure function of (seed, row, column), so sharding can't change them.

Philox 4x32 with 10 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns the
counter (column block, row) under the key (seed) into four random 32-bit words; the Box-Muller transform makes
four normal numbers of them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from memory_store.compilation import compiled
from memory_store.value_types import store

_ROUNDS = 10


@compiled(inline=True)
def philox(
    c0: np.uint32, c1: np.uint32, c2: np.uint32, c3: np.uint32, k0: np.uint32, k1: np.uint32
) -> tuple[np.uint32, np.uint32, np.uint32, np.uint32]:
    """Four random words of the counter `c0..c3` under the key `k0, k1`."""
    for _ in range(_ROUNDS):
        low = np.uint64(np.uint64(0xD2511F53) * np.uint64(c0))
        high = np.uint64(np.uint64(0xCD9E8D57) * np.uint64(c2))
        c0 = np.uint32(np.uint32(high >> np.uint64(32)) ^ c1 ^ k0)
        c2 = np.uint32(np.uint32(low >> np.uint64(32)) ^ c3 ^ k1)
        c1 = np.uint32(high & np.uint64(0xFFFFFFFF))
        c3 = np.uint32(low & np.uint64(0xFFFFFFFF))
        k0 = np.uint32(k0 + np.uint32(0x9E3779B9))
        k1 = np.uint32(k1 + np.uint32(0xBB67AE85))
    return c0, c1, c2, c3


@compiled(inline=True)
def _normal_pair(a: np.uint32, b: np.uint32) -> tuple[float, float]:
    radius = math.sqrt(-2.0 * math.log((np.float64(a) + 0.5) * 2.0**-32))
    angle = 2.0 * math.pi * (np.float64(b) * 2.0**-32)
    return radius * math.cos(angle), radius * math.sin(angle)


@compiled(parallel=True)
def _fill(values: NDArray[Any], rows: NDArray[np.int64], seed: np.uint64, std: float) -> None:
    count, dim = values.shape
    k0, k1 = np.uint32(seed & np.uint64(0xFFFFFFFF)), np.uint32(seed >> np.uint64(32))
    for index in prange(count):
        row = np.uint64(rows[index])
        low, high = np.uint32(row & np.uint64(0xFFFFFFFF)), np.uint32(row >> np.uint64(32))
        for block in range((dim + 3) // 4):
            a, b, c, d = philox(np.uint32(block), low, high, np.uint32(0), k0, k1)
            first, second = _normal_pair(a, b)
            third, fourth = _normal_pair(c, d)
            column = 4 * block
            store(values, index, column, std * first, a)
            if column + 1 < dim:
                store(values, index, column + 1, std * second, b)
            if column + 2 < dim:
                store(values, index, column + 2, std * third, c)
            if column + 3 < dim:
                store(values, index, column + 3, std * fourth, d)


def fill_normal(values: NDArray[Any], rows: NDArray[np.int64], seed: int, std: float) -> None:
    """Write the first values of `rows` (int64 `[R]`) into `values` (`[R, D]`): normal, mean 0, given std."""
    _fill(values, rows, np.uint64(seed), std)
