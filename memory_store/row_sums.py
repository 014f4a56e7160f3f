"""Sums over rows: weighted sums of rows, and inner products with them (inside kernels only)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numpy.typing import NDArray

from memory_store.compilation import compiled
from memory_store.row_code import COUNTS, Generation, Numbers, check_contiguous, generated

# Numbers. As many sums fill half of the registers of a processor that has 16 of 8 numbers; of longer rows it pays more to
# read at once what lies side by side.
NARROW = 64


class _Total:
    """A sum that grows, of numbers side by side."""

    def __init__(self, zero: Numbers) -> None:
        self._builder, self._zero = zero.builder, zero.value
        self._place = cgutils.alloca_once_value(zero.builder, zero.value)  # type: ignore[no-untyped-call]

    def add(self, numbers: Numbers) -> None:
        self._builder.store((self.numbers() + numbers).value, self._place)

    def clear(self) -> None:
        self._builder.store(self._zero, self._place)

    def numbers(self) -> Numbers:
        return Numbers(self._builder, self._builder.load(self._place))


def _totals(code: Generation, zero: Any) -> dict[int, _Total]:
    """A total for each count of numbers that a turn of a loop over columns has."""
    return {count: _Total(code.repeated(zero, count)) for count in COUNTS}


def _whole(totals: dict[int, _Total]) -> Any:
    return reduce(Numbers.__add__, (total.numbers().sum() for total in totals.values())).value


@generated
def _sum_narrow_rows(
    typing_context: Any,
    out: Any,
    target: Any,
    values: Any,
    first: Any,
    addresses: Any,
    weights: Any,
    begin: Any,
    end: Any,
) -> tuple[Any, Callable[..., Any]]:
    """`sum_weighted_rows` of rows so narrow that their sums stay in registers from the first entry to the last."""
    check_contiguous(out, values, addresses, weights)

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        code = Generation(context, builder, signature, arguments)
        summed, entries = code.row(0, code.index(1)), (code.index(6), code.index(7))
        zero = context.get_value_type(out.dtype)(0)

        def sum_columns(column: Any, count: int) -> None:
            total = _Total(code.repeated(zero, count))
            total.clear()
            with cgutils.for_range_slice(builder, *entries, entries[0].type(1), entries[0].type) as (
                entry,
                _,
            ):
                (row,) = code.named_rows(2, 3, 4, [entry])
                (following,) = code.named_rows(2, 3, 4, code.later(4, [entry]))
                following.prefetch(column, count)
                total.add(code.repeated(code.element(5, entry), count) * row.load(column, count))
            summed.store(column, count, total.numbers().value)

        code.over_columns(code.columns(0), sum_columns, (NARROW, *COUNTS))
        return context.get_dummy_value()

    return types.void(out, target, values, first, addresses, weights, begin, end), generate


@generated
def _add_rows(
    typing_context: Any,
    out: Any,
    target: Any,
    values: Any,
    first: Any,
    addresses: Any,
    weights: Any,
    entries: Any,
) -> tuple[Any, Callable[..., Any]]:
    """out[target] += weights[entry] * row addresses[entry] of `values`, for each of `entries`, a tuple, in its order."""
    check_contiguous(out, values, addresses, weights)

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        code = Generation(context, builder, signature, arguments)
        total, chosen = code.row(0, code.index(1)), code.members(6)
        rows = code.named_rows(2, 3, 4, chosen)
        following = code.named_rows(2, 3, 4, code.later(4, chosen))
        factors = [code.element(5, entry) for entry in chosen]

        def add(column: Any, count: int) -> None:
            found = total.load(column, count)
            for row, other, factor in zip(rows, following, factors, strict=True):
                other.prefetch(column, count)
                found = found + code.repeated(factor, count) * row.load(column, count)
            total.store(column, count, found.value)

        code.over_columns(code.columns(0), add)
        return context.get_dummy_value()

    return types.void(out, target, values, first, addresses, weights, entries), generate


@generated
def add_scaled_row(
    typing_context: Any, out: Any, target: Any, values: Any, row: Any, factor: Any
) -> tuple[Any, Callable[..., Any]]:
    """out[target] += factor * values[row]."""
    check_contiguous(out, values)

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        code = Generation(context, builder, signature, arguments)
        total, read, single = (
            code.row(0, code.index(1)),
            code.row(2, code.index(3)),
            code.single(4, out.dtype),
        )

        def add(column: Any, count: int) -> None:
            product = code.repeated(single, count) * read.load(column, count)
            total.store(column, count, (total.load(column, count) + product).value)

        code.over_columns(code.columns(0), add)
        return context.get_dummy_value()

    return types.void(out, target, values, row, factor), generate


@generated
def inner_products(
    typing_context: Any, vectors: Any, vector: Any, values: Any, first: Any, addresses: Any, entries: Any
) -> tuple[Any, Callable[..., Any]]:
    """A tuple: for each of `entries`, a tuple, <vectors[vector], row addresses[entry] of `values`>.

    Row 0 of `values` has the address `first`. Only one of both is bfloat16.
    """
    check_contiguous(vectors, values, addresses)
    computed = values.dtype if vectors.dtype == types.uint16 else vectors.dtype
    result = types.UniTuple(computed, entries.count)  # type: ignore[no-untyped-call]

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        code = Generation(context, builder, signature, arguments)
        common, chosen = code.row(0, code.index(1)), code.members(5)
        rows = code.named_rows(2, 3, 4, chosen)
        following = code.named_rows(2, 3, 4, code.later(4, chosen))
        zero = context.get_value_type(computed)(0)
        totals = [_totals(code, zero) for _ in rows]

        def add(column: Any, count: int) -> None:
            for row in following:
                row.prefetch(column, count)
            factors = common.load(column, count)
            for total, row in zip(totals, rows, strict=True):
                total[count].add(row.load(column, count) * factors)

        code.over_columns(code.columns(0), add)
        return context.make_tuple(builder, result, [_whole(total) for total in totals])

    return result(vectors, vector, values, first, addresses, entries), generate


@generated
def sum_of_squares(typing_context: Any, vectors: Any, vector: Any) -> tuple[Any, Callable[..., Any]]:
    """The sum of the squares of vectors[vector]."""
    check_contiguous(vectors)

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        code = Generation(context, builder, signature, arguments)
        row, zero = code.row(0, code.index(1)), context.get_value_type(vectors.dtype)(0)
        totals = _totals(code, zero)

        def add(column: Any, count: int) -> None:
            numbers = row.load(column, count)
            totals[count].add(numbers * numbers)

        code.over_columns(code.columns(0), add)
        return _whole(totals)

    return vectors.dtype(vectors, vector), generate


@compiled(inline=True)
def sum_weighted_rows(
    out: NDArray[Any],
    target: int | np.int64,
    values: NDArray[Any],
    first: int | np.int64,
    addresses: NDArray[Any],
    weights: NDArray[Any],
    begin: int | np.int64,
    end: int | np.int64,
) -> None:
    """out[target] = the sum over entries `begin` to `end` - 1 of weights[entry] * row addresses[entry] of `values`.

    Row 0 of `values` has the address `first`. One after the other, wherever it is called: the same entries have the same
    bits.
    """
    if out.shape[1] <= NARROW:
        _sum_narrow_rows(out, target, values, first, addresses, weights, begin, end)
    else:
        for column in range(out.shape[1]):
            out[target, column] = 0
        entry = begin
        while entry + 8 <= end:
            eight = (entry, entry + 1, entry + 2, entry + 3, entry + 4, entry + 5, entry + 6, entry + 7)
            _add_rows(out, target, values, first, addresses, weights, eight)
            entry += 8
        while entry < end:
            _add_rows(out, target, values, first, addresses, weights, (entry,))
            entry += 1
