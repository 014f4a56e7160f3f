"""The row optimizers: sum a row's gradient contributions, then update the row once, in one pass.

A row's gradient is `g = scale * sum over its contributions c of weight[c] * vector[c]`. In a *pooled* lookup
a contribution's vector is the output gradient of its token and the weight its attention weight; in a
*fetched* one the vector is the row's gradient and the weight 1. The gradient of a row is summed in a small
buffer, in contribution order, and never stored.

Formulas, per touched row (t counts the optimizer steps of the whole table, as `torch.optim.SparseAdam` does):
  sgd              p -= lr g
  adagrad          s += g^2;                       p -= lr g / (sqrt(s) + eps)         (torch.optim.Adagrad)
  rowwise_adagrad  s += mean(g^2), one s per row;  p -= lr g / (sqrt(s) + eps)
  adam             m += (1-b1)(g - m); v += (1-b2)(g^2 - v);
                   p -= lr sqrt(1-b2^t)/(1-b1^t) * m / (sqrt(v) + eps)            (torch.optim.SparseAdam)
  rowwise_adam     as adam with v += (1-b2)(mean(g^2) - v), one v per row
Rows without a contribution keep their values and their state bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from memory_store.compilation import compiled
from memory_store.grouping import Groups
from memory_store.kernels import PARTS, FloatArray
from memory_store.placement import BUCKETS
from memory_store.reused_memory import empty
from memory_store.row_code import AHEAD, prefetch
from memory_store.row_steps import adagrad_row, adam_row, descend_row, momentum_row
from memory_store.row_sums import sum_of_squares, sum_weighted_rows
from memory_store.table_spec import OptimizerSpec
from memory_store.value_types import mix

SGD, ADAGRAD, ROWWISE_ADAGRAD, ADAM, ROWWISE_ADAM = range(5)
_KINDS = {
    "sgd": SGD,
    "adagrad": ADAGRAD,
    "rowwise_adagrad": ROWWISE_ADAGRAD,
    "adam": ADAM,
    "rowwise_adam": ROWWISE_ADAM,
}


@dataclass(frozen=True)
class Contributions:
    """Gradient contributions to rows, grouped by row.

    addresses: uint32 `[U]`, distinct, ascending. starts: int32 `[U + 1]`. vector_numbers: int32 `[N]`, index
    into vectors. weights: `[N]`. vectors: `[V, D]`. The gradient of row addresses[u] is the sum of weights[c] *
    vectors[vector_numbers[c]] over c from starts[u] to starts[u + 1] - 1.
    """

    addresses: NDArray[np.uint32]
    starts: NDArray[np.int32]
    vector_numbers: NDArray[np.int32]
    weights: FloatArray
    vectors: FloatArray

    @classmethod
    def grouped(
        cls, groups: Groups, vector_of_entry: NDArray[np.int32], weights: FloatArray, vectors: FloatArray
    ) -> Contributions:
        """Bring entries (vector_of_entry int32 `[N]`, weights `[N]`) into the order of their groups."""
        # Once, side by side: a kernel that followed `order` for each row would wait for every entry in turn.
        numbers, ordered = empty(vector_of_entry.shape, np.int32), empty(weights.shape, weights.dtype)
        _reorder(groups.order, vector_of_entry, weights, numbers, ordered)
        return cls(groups.addresses, groups.starts, numbers, ordered, vectors)


@compiled(parallel=True)
def _reorder(
    order: NDArray[np.int32],
    vector_of_entry: NDArray[np.int32],
    weights: FloatArray,
    vector_numbers: NDArray[np.int32],
    ordered_weights: FloatArray,
) -> None:
    for position in prange(order.size):
        vector_numbers[position] = vector_of_entry[order[position]]
        ordered_weights[position] = weights[order[position]]


@compiled(parallel=True)
def _sum_rows(
    starts: NDArray[np.int32],
    vector_numbers: NDArray[np.int32],
    weights: FloatArray,
    vectors: FloatArray,
    out: FloatArray,
) -> None:
    for group in prange(starts.size - 1):
        begin, end = np.int64(starts[group]), np.int64(starts[group + 1])
        sum_weighted_rows(out, group, vectors, 0, vector_numbers, weights, begin, end)


@compiled(parallel=True)
def _squared_norms(
    starts: NDArray[np.int32],
    vector_numbers: NDArray[np.int32],
    weights: FloatArray,
    vectors: FloatArray,
    out: NDArray[np.float64],
) -> None:
    dim, groups = vectors.shape[1], starts.size - 1
    for part in prange(PARTS):
        gradient = np.empty((1, dim), dtype=vectors.dtype)
        for group in range(groups * part // PARTS, groups * (part + 1) // PARTS):
            begin, end = np.int64(starts[group]), np.int64(starts[group + 1])
            sum_weighted_rows(gradient, 0, vectors, 0, vector_numbers, weights, begin, end)
            total = 0.0
            for column in range(dim):
                total += np.float64(gradient[0, column]) * np.float64(gradient[0, column])
            out[group] = total


@compiled(parallel=True)
def _squares(vectors: FloatArray, out: FloatArray) -> None:
    for vector in prange(vectors.shape[0]):
        out[vector] = sum_of_squares(vectors, vector)


@compiled(inline=True)
def _update_row(
    kind: int,
    values: NDArray[Any],
    first_state: FloatArray,
    second_state: FloatArray,
    row: int | np.int64,
    later_row: int | np.int64,
    gradients: FloatArray,
    which: int | np.int64,
    later: int | np.int64,
    squares: float,
    scale: float,
    constants: FloatArray,
    key: np.uint32,
) -> None:
    """One step of row `row` with the gradient scale * gradients[which]; `later_row` with gradients[later] comes soon.

    `squares` is the sum of the squares of gradients[which], for the row-wise kinds.
    """
    # Constants come as one array of the compute type, so that no float64 literal widens the arithmetic.
    rate, one_minus_beta1, one_minus_beta2 = constants[0], constants[2], constants[3]
    eps, corrected_rate, inverse_dim = constants[4], constants[5], constants[6]
    if kind == SGD:
        descend_row(
            values, first_state, second_state, row, later_row, gradients, which, later, scale, (rate,), key
        )
    elif kind == ADAGRAD:
        scalars = (rate, eps)
        adagrad_row(
            values, first_state, second_state, row, later_row, gradients, which, later, scale, scalars, key
        )
    elif kind == ROWWISE_ADAGRAD:
        prefetch(first_state, later_row)
        s = first_state[row, 0] + scale * scale * inverse_dim * squares
        first_state[row, 0] = s
        of_row = (rate / (math.sqrt(s) + eps),)
        descend_row(
            values, first_state, second_state, row, later_row, gradients, which, later, scale, of_row, key
        )
    elif kind == ADAM:
        of_adam = (corrected_rate, eps, one_minus_beta1, one_minus_beta2)
        adam_row(
            values, first_state, second_state, row, later_row, gradients, which, later, scale, of_adam, key
        )
    else:
        prefetch(second_state, later_row)
        mean_square = scale * scale * inverse_dim * squares
        v = second_state[row, 0] + one_minus_beta2 * (mean_square - second_state[row, 0])
        second_state[row, 0] = v
        row_rate = corrected_rate / (math.sqrt(v) + eps)
        momentum_row(
            values, first_state, second_state, row, later_row, gradients, which, later, scale,
            (row_rate, one_minus_beta1), key,
        )  # fmt: skip


@compiled(parallel=True)
def _update(
    kind: int,
    values: NDArray[Any],
    first_state: FloatArray,
    second_state: FloatArray,
    last_step: NDArray[np.uint32],
    first: int,
    addresses: NDArray[np.uint32],
    starts: NDArray[np.int32],
    vector_numbers: NDArray[np.int32],
    weights: FloatArray,
    vectors: FloatArray,
    squares: FloatArray,
    constants: FloatArray,
    step: int,
    rounding_seed: np.uint32,
) -> None:
    last = addresses.size - 1
    rowwise = kind in (ROWWISE_ADAGRAD, ROWWISE_ADAM)
    row_squares = constants[0] - constants[0]  # a zero of the compute type; a literal would widen it
    step_key = mix(np.uint32(rounding_seed + np.uint32(step)))
    for part in prange(PARTS):
        summed = np.empty((1, values.shape[1]), dtype=vectors.dtype)
        for group in range(addresses.size * part // PARTS, addresses.size * (part + 1) // PARTS):
            following = min(group + AHEAD, last)
            later_row = np.int64(addresses[following]) - first
            later = np.int64(vector_numbers[starts[following]])
            prefetch(last_step, later_row)
            begin, end = np.int64(starts[group]), np.int64(starts[group + 1])
            row = np.int64(addresses[group]) - first
            key = mix(np.uint32(addresses[group]) ^ step_key)
            if end - begin == 1:  # most rows: the vector itself, with its weight moved into the scale
                scale, vector = constants[1] * weights[begin], np.int64(vector_numbers[begin])
                if rowwise:
                    row_squares = squares[vector] if squares.size > 0 else sum_of_squares(vectors, vector)
                _update_row(
                    kind, values, first_state, second_state, row, later_row, vectors, vector, later, row_squares,
                    scale, constants, key,
                )  # fmt: skip
            else:
                sum_weighted_rows(summed, 0, vectors, 0, vector_numbers, weights, begin, end)
                if rowwise:
                    row_squares = sum_of_squares(summed, 0)
                _update_row(
                    kind, values, first_state, second_state, row, later_row, summed, 0, 0, row_squares,
                    constants[1], constants, key,
                )  # fmt: skip
            last_step[row] = np.uint32(step)


def sum_by_row(contributions: Contributions) -> FloatArray:
    """The summed gradient of every touched row: `[U, D]`, in the order of `addresses`."""
    vectors = contributions.vectors
    out = empty((contributions.addresses.size, vectors.shape[1]), vectors.dtype)
    _sum_rows(contributions.starts, contributions.vector_numbers, contributions.weights, vectors, out)
    return out


def squared_norm_by_bucket(contributions: Contributions, capacity: int) -> NDArray[np.float64]:
    """Sum of squares of the row gradients, per bucket: float64 `[1024]`.

    Kept apart by bucket because addition rounds: adding buckets in their order gives every number of shards
    the same norm.
    """
    squares = np.empty(contributions.addresses.size, dtype=np.float64)
    _squared_norms(
        contributions.starts,
        contributions.vector_numbers,
        contributions.weights,
        contributions.vectors,
        squares,
    )
    buckets = (contributions.addresses // np.uint32(capacity)).astype(np.int64)
    return np.bincount(buckets, weights=squares, minlength=BUCKETS).astype(np.float64, copy=False)


@dataclass(frozen=True)
class RowState:
    """The arrays that one update changes: values `[R, D]`, two state arrays, and last_step uint32 `[R]`."""

    values: NDArray[Any]
    first_state: FloatArray
    second_state: FloatArray
    last_step: NDArray[np.uint32]


def update_rows(
    optimizer: OptimizerSpec,
    rows: RowState,
    first_address: int,
    contributions: Contributions,
    *,
    step: int,
    learning_rate: float,
    scale: float,
    seed: int,
) -> None:
    """Apply one optimizer step to the touched rows; `step` counts from 1, `scale` multiplies gradients."""
    dim = rows.values.shape[1]
    beta1, beta2 = optimizer.betas
    corrected_rate = learning_rate * math.sqrt(1 - beta2**step) / (1 - beta1**step)
    constants = np.array(
        [learning_rate, scale, 1 - beta1, 1 - beta2, optimizer.eps, corrected_rate, 1 / dim],
        dtype=contributions.vectors.dtype,
    )
    kind = _KINDS[optimizer.kind]
    _update(
        kind,
        rows.values,
        rows.first_state,
        rows.second_state,
        rows.last_step,
        first_address,
        contributions.addresses,
        contributions.starts,
        contributions.vector_numbers,
        contributions.weights,
        contributions.vectors,
        _squares_of_vectors(kind, contributions),
        constants,
        step,
        np.uint32(seed & 0xFFFFFFFF),
    )


def _squares_of_vectors(kind: int, contributions: Contributions) -> FloatArray:
    """The sum of the squares of every vector `[V]`, if that is less work than of each row's; else nothing `[0]`."""
    # Beforehand also because a row's step waits for it, a sum of many numbers, and then for a root and a division.
    vectors = contributions.vectors
    wanted = kind in (ROWWISE_ADAGRAD, ROWWISE_ADAM) and 2 * len(vectors) <= contributions.addresses.size
    out = np.empty(len(vectors) if wanted else 0, dtype=vectors.dtype)
    if wanted:
        _squares(vectors, out)
    return out
