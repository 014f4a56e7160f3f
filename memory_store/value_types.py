"""How values are stored, and a single one written inside a kernel (whole rows: row_code.py).

float32 and float64 are stored as they are. bfloat16 is stored as the upper 16 bits of a float32, in uint16.
Rounding a small update to the nearest bfloat16 loses it (a step below 2**-9 of the value changes nothing), so
a bfloat16 row is written with *stochastic rounding*: random bits are added below the cut, and the expected
stored value is exact. The bits are a pure function of (seed, step, row, column), so a run repeats bit for bit
on any number of shards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

from memory_store.compilation import compiled


@compiled(inline=True)
def mix(value: np.uint32) -> np.uint32:
    """Scramble 32 bits, one to one; neighbouring inputs give unrelated outputs (multiply-xorshift)."""
    value = np.uint32(value ^ (value >> np.uint32(16)))
    value = np.uint32(value * np.uint32(0x7FEB352D))
    value = np.uint32(value ^ (value >> np.uint32(15)))
    value = np.uint32(value * np.uint32(0x846CA68B))
    return np.uint32(value ^ (value >> np.uint32(16)))


def store(values: NDArray[Any], row: int | np.int64, column: int, number: float, key: np.uint32) -> None:
    """Write `number` at `values[row, column]`; `key` seeds the rounding of bfloat16 (inside kernels only)."""
    raise AssertionError("only for compiled code")


@overload(store, inline="always")  # type: ignore[untyped-decorator, unused-ignore]
def _store(values: Any, row: Any, column: Any, number: Any, key: Any) -> Callable[..., None]:
    if values.dtype == types.uint16:

        def rounded(values: Any, row: Any, column: Any, number: Any, key: Any) -> None:
            noise = mix(np.uint32(key + np.uint32(column) * np.uint32(0x9E3779B9))) & np.uint32(0xFFFF)
            bits = np.float32(number).view(np.uint32)
            values[row, column] = np.uint16(np.uint32(bits + noise) >> np.uint32(16))

        return rounded

    def plain(values: Any, row: Any, column: Any, number: Any, key: Any) -> None:
        values[row, column] = number

    return plain


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 to the nearest bfloat16 (ties to even), as uint16 bit patterns of the same shape."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))) >> np.uint32(16)).astype(
        np.uint16
    )


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The float32 numbers of bfloat16 bit patterns, same shape."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
