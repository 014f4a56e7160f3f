"""Reading and writing one stored value inside a kernel, whatever its type.

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


def load(values: NDArray[Any], row: int | np.int64, column: int) -> float:
    """The number stored at `values[row, column]` (inside kernels only)."""
    raise AssertionError("only for compiled code")


def store(values: NDArray[Any], row: int | np.int64, column: int, number: float, key: np.uint32) -> None:
    """Write `number` at `values[row, column]`; `key` seeds the rounding of bfloat16 (inside kernels only)."""
    raise AssertionError("only for compiled code")


def put(values: NDArray[Any], row: int | np.int64, column: int, number: float, scratch: NDArray[Any]) -> None:
    """Write one new number of `values[row]`, to be followed by `round_row` (inside kernels only).

    Where a table stores another type than is computed in, the number goes to `scratch` `[D]`.
    """
    raise AssertionError("only for compiled code")


def round_row(values: NDArray[Any], row: int | np.int64, scratch: NDArray[Any], key: np.uint32) -> None:
    """Round the numbers that `put` left in `scratch` into `values[row]`; `key` seeds the rounding (inside kernels only)."""
    raise AssertionError("only for compiled code")


@overload(load, inline="always")  # type: ignore[untyped-decorator, unused-ignore]
def _load(values: Any, row: Any, column: Any) -> Callable[..., Any]:
    if values.dtype == types.uint16:

        def widened(values: Any, row: Any, column: Any) -> Any:
            return np.uint32(np.uint32(values[row, column]) << np.uint32(16)).view(np.float32)

        return widened

    def plain(values: Any, row: Any, column: Any) -> Any:
        return values[row, column]

    return plain


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


@overload(put, inline="always")  # type: ignore[untyped-decorator, unused-ignore]
def _put(values: Any, row: Any, column: Any, number: Any, scratch: Any) -> Callable[..., None]:
    if values.dtype == types.uint16:

        def beside(values: Any, row: Any, column: Any, number: Any, scratch: Any) -> None:
            scratch[column] = number

        return beside

    def there(values: Any, row: Any, column: Any, number: Any, scratch: Any) -> None:
        values[row, column] = number

    return there


@overload(round_row, inline="always")  # type: ignore[untyped-decorator, unused-ignore]
def _round_row(values: Any, row: Any, scratch: Any, key: Any) -> Callable[..., None]:
    if values.dtype == types.uint16:

        def rounded(values: Any, row: Any, scratch: Any, key: Any) -> None:
            # 32 random bits are enough for two numbers: a column of the first half takes the lower ones, its fellow in
            # the second half the upper ones. Of an odd number of columns the last of the first half has no fellow.
            dim = values.shape[1]
            pairs, half = dim // 2, (dim + 1) // 2
            for column in range(pairs):
                noise = mix(np.uint32(key + np.uint32(column)))
                lower = np.float32(scratch[column]).view(np.uint32) + (noise & np.uint32(0xFFFF))
                upper = np.float32(scratch[half + column]).view(np.uint32) + (noise >> np.uint32(16))
                values[row, column] = np.uint16(np.uint32(lower) >> np.uint32(16))
                values[row, half + column] = np.uint16(np.uint32(upper) >> np.uint32(16))
            if pairs < half:
                noise = mix(np.uint32(key + np.uint32(pairs))) & np.uint32(0xFFFF)
                alone = np.float32(scratch[pairs]).view(np.uint32) + noise
                values[row, pairs] = np.uint16(np.uint32(alone) >> np.uint32(16))

        return rounded

    def exact(values: Any, row: Any, scratch: Any, key: Any) -> None:
        pass

    return exact


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 to the nearest bfloat16 (ties to even), as uint16 bit patterns of the same shape."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))) >> np.uint32(16)).astype(
        np.uint16
    )


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The float32 numbers of bfloat16 bit patterns, same shape."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
