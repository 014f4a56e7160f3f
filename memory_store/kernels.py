"""Reading rows: gather, weighted pooling, and the gradient of the weights.

Each kernel is one pass over the rows it touches, on all threads, without the GIL. Rows are named by address;
`first` is the first address the given `values` hold. Entries of token `t` are `offsets[t] .. offsets[t+1] -
1`. Sums over the entries of a token are made in entry order, one after the other, so
that pooling at a shard and pooling fetched rows at the trainer give the same bits when one shard holds all
rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from memory_store.compilation import compiled
from memory_store.row_copies import copy_row, copy_row_past_caches, finish_lines, goes_past_caches
from memory_store.row_sums import inner_products, sum_weighted_rows

FloatArray = NDArray[Any]  # float32; float64 for float64 tables

# Into how many parts threads divide rows where each part needs something of its own.
PARTS = 64


def gather_rows(values: NDArray[Any], first: int, addresses: NDArray[np.uint32], out: FloatArray) -> None:
    """out[u, :] = row addresses[u]. values `[R, D]`, addresses uint32 `[U]`, out `[U, D]`."""
    kernel = _gather_past_caches if goes_past_caches(out) else _gather
    kernel(values, first, addresses, out)


@compiled(parallel=True)
def _gather(values: NDArray[Any], first: int, addresses: NDArray[np.uint32], out: FloatArray) -> None:
    for index in prange(addresses.size):
        copy_row(out, index, values, first, addresses, index)


@compiled(parallel=True)
def _gather_past_caches(
    values: NDArray[Any], first: int, addresses: NDArray[np.uint32], out: FloatArray
) -> None:
    for part in prange(PARTS):
        for index in range(addresses.size * part // PARTS, addresses.size * (part + 1) // PARTS):
            copy_row_past_caches(out, index, values, first, addresses, index)
        finish_lines()


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
    for token in prange(out.shape[0]):
        begin, end = np.int64(offsets[token]), np.int64(offsets[token + 1])
        sum_weighted_rows(out, token, values, first, addresses, weights, begin, end)


@compiled(parallel=True)
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
    for token in prange(output_gradient.shape[0]):
        begin, end = int(offsets[token]), int(offsets[token + 1])
        for entry in range(begin, end, 4):
            # Four at a time, also at the end, where the last is computed again: every entry has the same bits anywhere.
            four = (entry, min(entry + 1, end - 1), min(entry + 2, end - 1), min(entry + 3, end - 1))
            products = inner_products(output_gradient, token, values, first, addresses, four)
            out[four[0]], out[four[1]], out[four[2]], out[four[3]] = products


@compiled(parallel=True)
def weight_gradients_by_row(
    values: NDArray[Any],
    first: int,
    addresses: NDArray[np.uint32],
    starts: NDArray[np.int32],
    order: NDArray[np.int32],
    tokens: NDArray[np.int32],
    output_gradient: FloatArray,
    out: FloatArray,
) -> None:
    """`weight_gradients` of entries grouped by row (grouping.py), the same bits: a row is read once, gradients often.

    tokens int32 `[N]`: of the entries in the order of their groups.
    """
    for part in prange(PARTS):
        for group in range(addresses.size * part // PARTS, addresses.size * (part + 1) // PARTS):
            row = np.int64(addresses[group]) - first
            begin, end = int(starts[group]), int(starts[group + 1])
            for place in range(begin, end, 4):
                four = (place, min(place + 1, end - 1), min(place + 2, end - 1), min(place + 3, end - 1))
                products = inner_products(values, row, output_gradient, 0, tokens, four)
                for number in range(4):
                    out[order[four[number]]] = products[number]


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
