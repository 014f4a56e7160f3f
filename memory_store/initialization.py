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


# The functions of the Box-Muller transform, spelled out in arithmetic alone: calls of the C library would keep the loop
# over a row's numbers from using vector instructions, which make it five times as fast. Both are exact to 1e-12.


@compiled(inline=True)
def _log(x: float) -> float:
    """The natural logarithm of a normal, positive number."""
    bits = np.float64(x).view(np.int64)
    # x = 2**exponent * mantissa, with a mantissa from sqrt(1/2) to sqrt(2), near which the series is short.
    exponent = (bits - np.int64(0x3FE6A09E667F3BCD)) >> np.int64(52)
    mantissa = np.int64(bits - (exponent << np.int64(52))).view(np.float64)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    z = s * s
    series = 1 / 15 + z * (1 / 17)
    series = 1 / 11 + z * (1 / 13 + z * series)
    series = 1 / 7 + z * (1 / 9 + z * series)
    series = 1 / 3 + z * (1 / 5 + z * series)
    return np.float64(exponent) * math.log(2.0) + 2.0 * s * (1.0 + z * series)


@compiled(inline=True)
def _cos_sin(turns: float) -> tuple[float, float]:
    """Cosine and sine of an angle in whole turns, from 0 to 1."""
    quarter = math.floor(4.0 * turns + 0.5)
    x = (4.0 * turns - quarter) * (math.pi / 2)  # from -pi/4 to pi/4
    z = x * x
    cosine = 1 / 479001600 - z * (1 / 87178291200)
    cosine = 1 / 40320 - z * (1 / 3628800 - z * cosine)
    cosine = 1.0 - z * (1 / 2 - z * (1 / 24 - z * (1 / 720 - z * cosine)))
    sine = 1 / 362880 - z * (1 / 39916800 - z * (1 / 6227020800))
    sine = x * (1.0 - z * (1 / 6 - z * (1 / 120 - z * (1 / 5040 - z * sine))))
    odd = quarter == 1.0 or quarter == 3.0
    across, up = (sine, cosine) if odd else (cosine, sine)
    return (-across if 1.0 <= quarter <= 2.0 else across), (-up if 2.0 <= quarter <= 3.0 else up)


@compiled(inline=True)
def normal_pair(a: np.uint32, b: np.uint32) -> tuple[float, float]:
    """Two normal numbers of two random words (Box and Muller 1958)."""
    radius = math.sqrt(-2.0 * _log((np.float64(a) + 0.5) * 2.0**-32))
    across, up = _cos_sin(np.float64(b) * 2.0**-32)
    return radius * across, radius * up


@compiled(parallel=True)
def _fill(values: NDArray[Any], rows: NDArray[np.int64], seed: np.uint64, std: float) -> None:
    count, dim = values.shape
    k0, k1 = np.uint32(seed & np.uint64(0xFFFFFFFF)), np.uint32(seed >> np.uint64(32))
    for index in prange(count):
        row = np.uint64(rows[index])
        low, high = np.uint32(row & np.uint64(0xFFFFFFFF)), np.uint32(row >> np.uint64(32))
        for block in range(dim // 4):
            a, b, c, d = philox(np.uint32(block), low, high, np.uint32(0), k0, k1)
            first, second = normal_pair(a, b)
            third, fourth = normal_pair(c, d)
            store(values, index, 4 * block, std * first, a)
            store(values, index, 4 * block + 1, std * second, b)
            store(values, index, 4 * block + 2, std * third, c)
            store(values, index, 4 * block + 3, std * fourth, d)
        rest = dim - dim % 4
        if rest < dim:
            a, b, c, d = philox(np.uint32(dim // 4), low, high, np.uint32(0), k0, k1)
            first, second = normal_pair(a, b)
            third, _ = normal_pair(c, d)
            store(values, index, rest, std * first, a)
            if rest + 1 < dim:
                store(values, index, rest + 1, std * second, b)
            if rest + 2 < dim:
                store(values, index, rest + 2, std * third, c)


def fill_normal(values: NDArray[Any], rows: NDArray[np.int64], seed: int, std: float) -> None:
    """Write the first values of `rows` (int64 `[R]`) into `values` (`[R, D]`): normal, mean 0, given std."""
    _fill(values, rows, np.uint64(seed), std)


@compiled(parallel=True)
def clear(numbers: NDArray[Any]) -> None:
    """Zero all of `numbers` (flat) on all threads, which share the page faults of memory that is used for the first
    time.
    """
    for index in prange(numbers.size):
        numbers[index] = 0
