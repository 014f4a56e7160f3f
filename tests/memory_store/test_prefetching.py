"""A prefetch asks for the row that it is meant for, and changes nothing.

That it comes in time is a matter of speed, and measured in benchmarks/; here its address is checked, in the code
that the compiler makes.
"""

from __future__ import annotations

import re

import numba
import numpy as np
import pytest

from memory_store.prefetching import prefetch_row


@numba.njit  # not cached: the code of a cached function can't be read
def _prefetch(array: np.ndarray, row: np.int64) -> None:  # type: ignore[type-arg]
    prefetch_row(array, row)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("dim", [0, 1, 7, 256, 4096])
def test_rows_of_any_width_stay_what_they_are(dtype: type, dim: int):
    array = np.arange(5 * dim).astype(dtype).reshape(5, dim)
    before = array.copy()
    for row in range(5):
        _prefetch(array, np.int64(row))
    np.testing.assert_array_equal(array, before)


def test_the_compiled_kernel_holds_the_hint():
    _prefetch(np.zeros((2, 64), np.float32), np.int64(1))
    (code,) = (text for types, text in _prefetch.inspect_asm().items() if "float32" in str(types[0]))  # type: ignore[attr-defined]
    assert re.search(r"\bprefetch\w*\b", code)
