"""Reading rows: gather, weighted pooling, and the gradient of the weights.

Each kernel is one pass over the rows it touches, on all threads, without the GIL. Rows are named by address;
`first` is the first address the given `values` hold. Entries of token `t` are `offsets[t] .. offsets[t+1] -
1`. Sums over the entries of a token are made in entry order, four rows at a time, the same way everywhere, so
that pooling at a shard and pooling fetched rows at the trainer give the same bits when one shard holds all
rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from memory_store.compilation import compiled
from memory_store.prefetching import AHEAD, prefetch_row
from memory_store.uncached_rows import copy_row, finish_lines, goes_past_caches
from memory_store.value_types import load

FloatArray = NDArray[Any]  # float32; float64 for float64 tables

# Into how many parts threads divide rows where each part needs something of its own.
PARTS = 64


def gather_rows(values: NDArray[Any], first: int, addresses: NDArray[np.uint32], out: FloatArray) -> None:
    """out[u, :] = row addresses[u]. values `[R, D]`, addresses uint32 `[U]`, out `[U, D]`."""
    kernel = _gather_past_caches if goes_past_caches(out) else _gather
    kernel(values, first, addresses, out)


@compiled(parallel=True)
def _gather(values: NDArray[Any], first: int, addresses: NDArray[np.uint32], out: FloatArray) -> None:
    dim, last = values.shape[1], addresses.size - 1
    for index in prange(addresses.size):
        prefetch_row(values, np.int64(addresses[min(index + AHEAD, last)]) - first)
        row = np.int64(addresses[index]) - first
        for column in range(dim):
            out[index, column] = load(values, row, column)


@compiled(parallel=True)
def _gather_past_caches(
    values: NDArray[Any], first: int, addresses: NDArray[np.uint32], out: FloatArray
) -> None:
    last = addresses.size - 1
    for part in prange(PARTS):
        for index in range(addresses.size * part // PARTS, addresses.size * (part + 1) // PARTS):
            prefetch_row(values, np.int64(addresses[min(index + AHEAD, last)]) - first)
            copy_row(values, np.int64(addresses[index]) - first, out, index)
        finish_lines()  # type: ignore[call-arg]  # Numba passes the context


@compiled(parallel=True)
def pool_rows(
    values: NDArray[Any],
    first: int,
    offsets: NDArray[np.int32],
    addresses: NDArray[np.uint32],
    weights: FloatArray,
    out: FloatArray,
) -> None:
    """out[t, :] = sum over the entries e of token t of weights[e] * row addresses[e]. out `[T, D]`."""
    tokens, dim = out.shape
    last = addresses.size - 1
    for token in prange(tokens):
        for column in range(dim):
            out[token, column] = 0
        entry, end = np.int64(offsets[token]), np.int64(offsets[token + 1])
        while entry + 4 <= end:
            r0, r1 = np.int64(addresses[entry]) - first, np.int64(addresses[entry + 1]) - first
            r2, r3 = np.int64(addresses[entry + 2]) - first, np.int64(addresses[entry + 3]) - first
            for ahead in range(AHEAD, AHEAD + 4):
                prefetch_row(values, np.int64(addresses[min(int(entry) + ahead, last)]) - first)
            w0, w1, w2, w3 = weights[entry], weights[entry + 1], weights[entry + 2], weights[entry + 3]
            for column in range(dim):
                out[token, column] += (
                    w0 * load(values, r0, column)
                    + w1 * load(values, r1, column)
                    + w2 * load(values, r2, column)
                    + w3 * load(values, r3, column)
                )
            entry += 4
        while entry < end:
            row, weight = np.int64(addresses[entry]) - first, weights[entry]
            for column in range(dim):
                out[token, column] += weight * load(values, row, column)
            entry += 1


@compiled(parallel=True, reorder_sums=True)
def weight_gradients(
    values: NDArray[Any],
    first: int,
    offsets: NDArray[np.int32],
    addresses: NDArray[np.uint32],
    output_gradient: FloatArray,
    out: FloatArray,
) -> None:
    """out[e] = <row addresses[e], output_gradient[t]> for the entries e of token t.

    output_gradient `[T, D]`, out `[N]`.
    """
    tokens, dim = output_gradient.shape
    last = addresses.size - 1
    zero = output_gradient.dtype.type(0)
    for token in prange(tokens):
        begin, end = int(offsets[token]), int(offsets[token + 1])
        for e0 in range(begin, end, 4):
            # Four at a time, also at the end, where the last is computed again: every entry has the same bits anywhere.
            e1, e2, e3 = min(e0 + 1, end - 1), min(e0 + 2, end - 1), min(e0 + 3, end - 1)
            for ahead in range(AHEAD, AHEAD + 4):
                prefetch_row(values, np.int64(addresses[min(e0 + ahead, last)]) - first)
            r0, r1 = np.int64(addresses[e0]) - first, np.int64(addresses[e1]) - first
            r2, r3 = np.int64(addresses[e2]) - first, np.int64(addresses[e3]) - first
            sum0, sum1, sum2, sum3 = zero, zero, zero, zero
            for column in range(dim):
                gradient = output_gradient[token, column]
                sum0 += load(values, r0, column) * gradient
                sum1 += load(values, r1, column) * gradient
                sum2 += load(values, r2, column) * gradient
                sum3 += load(values, r3, column) * gradient
            out[e0], out[e1], out[e2], out[e3] = sum0, sum1, sum2, sum3


def all_finite(numbers: FloatArray) -> bool:
    """Whether no element of `numbers`, float32 or float64, flat and contiguous, is NaN or infinite."""
    bits, exponent = (np.uint64, 0x7FF << 52) if numbers.dtype == np.float64 else (np.uint32, 0xFF << 23)
    return bool(_exponents_below(numbers.view(bits), bits(exponent)))


@compiled()
def _exponents_below(bits: NDArray[Any], exponent: Any) -> bool:
    """Whether no number has all bits of its exponent set, as NaN and the infinities have."""
    # A greatest integer is found eight at a time; a sum of floats, whose order counts, is not.
    greatest = exponent - exponent
    for index in range(bits.size):
        greatest = max(greatest, bits[index] & exponent)
    return bool(greatest < exponent)
