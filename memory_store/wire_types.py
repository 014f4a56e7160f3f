"""The element types in which vectors of float32 can travel, and the way from one to the other.

Vectors are rows, pooled sums and their gradients: nearly all bytes of a message. As bfloat16 they take half of
them. Each element is rounded to the nearest bfloat16 (ties to even), so it is off by at most 2**-8 of itself
(elements below 2**-126, the smallest normal number, by at most 2**-134); what lies beyond the largest
bfloat16, 3.39e38, becomes infinite; infinite stays infinite and NaN stays NaN. Rounding is a function of the
element alone: the same call gives the same bytes.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numba import prange
from numpy.typing import NDArray

from memory_store.compilation import compiled
from memory_store.reused_memory import empty

_MANY = 1 << 20  # elements for which it pays to wake the other threads

WireType = Literal["float32", "bfloat16"]


def narrow(numbers: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bfloat16 bit patterns nearest to `numbers` (flat, contiguous)."""
    out = empty((numbers.size,), np.uint16)
    _narrow(numbers.view(np.uint32), out)
    return out


def widen(patterns: NDArray[Any]) -> NDArray[np.float32]:
    """The numbers of bfloat16 bit patterns (uint16, any shape, contiguous), exactly."""
    out = empty(patterns.shape, np.float32)
    kernel = _widen_on_all_threads if patterns.size >= _MANY else _widen
    kernel(patterns.reshape(-1), out.reshape(-1).view(np.uint32))
    return out


@compiled()
def _narrow(bits: NDArray[np.uint32], out: NDArray[np.uint16]) -> None:
    for index in range(bits.size):
        number = bits[index]
        up = np.uint32(0x7FFF) + ((number >> np.uint32(16)) & np.uint32(1))
        rounded = np.uint32(number + up)
        # Added to a NaN, the carry could make it a number.
        if number & np.uint32(0x7FFFFFFF) > np.uint32(0x7F800000):
            rounded = np.uint32(number | np.uint32(0x00400000))
        out[index] = np.uint16(rounded >> np.uint32(16))


def _widening(patterns: NDArray[np.uint16], out: NDArray[np.uint32]) -> None:
    for index in prange(patterns.size):
        out[index] = np.uint32(patterns[index]) << np.uint32(16)


_widen = compiled()(_widening)
_widen_on_all_threads = compiled(parallel=True)(_widening)
