"""What is asked for ahead is the row that is meant, and changes nothing; rows that are not contiguous are refused.

That it comes in time is a matter of speed, and measured in benchmarks/; here the code that the compiler makes is looked at.
Results are checked where the kernels are, in test_kernels.py and test_optimizers.py.
"""

from __future__ import annotations

import re

import numba
import numpy as np
import pytest
from numba.core.errors import TypingError

from memory_store.row_code import AHEAD, prefetch
from memory_store.row_sums import sum_of_squares, sum_weighted_rows


@numba.njit  # not cached: the code of a cached function can't be read
def _prefetch(array: np.ndarray, row: np.int64) -> None:  # type: ignore[type-arg]
    prefetch(array, row)


@numba.njit
def _sum(
    out: np.ndarray,  # type: ignore[type-arg]
    values: np.ndarray,  # type: ignore[type-arg]
    addresses: np.ndarray,  # type: ignore[type-arg]
    weights: np.ndarray,  # type: ignore[type-arg]
) -> None:
    sum_weighted_rows(out, 0, values, 0, addresses, weights, np.int64(0), np.int64(addresses.size))


@numba.njit
def _squares(array: np.ndarray) -> float:  # type: ignore[type-arg]
    return sum_of_squares(array, 0)  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("dim", [0, 1, 7, 256])
def test_rows_stay_what_they_are(dtype: type, dim: int):
    array = np.arange(5 * dim).astype(dtype).reshape(5, dim)
    before = array.copy()
    for row in range(5):
        _prefetch(array, np.int64(row))
    np.testing.assert_array_equal(array, before)


def test_compiled_kernels_hold_the_hint():
    _prefetch(np.zeros((2, 64), np.float32), np.int64(1))
    addresses, weights = np.zeros(AHEAD + 1, np.uint32), np.ones(AHEAD + 1, np.float32)
    _sum(np.zeros((1, 64), np.float32), np.zeros((2, 64), np.float32), addresses, weights)
    for kernel in (_prefetch, _sum):
        (code,) = (text for types, text in kernel.inspect_asm().items() if "float32" in str(types[0]))  # type: ignore[attr-defined]
        assert re.search(r"\bprefetch\w*\b", code)


def test_rows_that_are_not_contiguous_are_refused():
    assert _squares(np.full((2, 20), 2, np.float32)) == 80
    with pytest.raises(TypingError, match="must be a C-contiguous array"):
        _squares(np.zeros((20, 20), np.float32)[:, ::2])
