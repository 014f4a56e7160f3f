"""Comparing many numbers at once (inside kernels only): code generated as vector instructions, see memory_store/row_code.py.

Whether a number is large enough is a bit; of 64 numbers they are one integer. Who then looks at the set bits alone has as
many steps as there are numbers to keep, and hardly a branch that a processor could mispredict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from memory_store.row_code import (
    LANES,
    Generation,
    Numbers,
    check_contiguous,
    constant,
    generated,
    of_count,
)

WORD_BITS = 64

_PLACE, _WORD = ir.IntType(32), ir.IntType(64)


@generated
def reaching(
    typing_context: Any, rows: Any, row: Any, begin: Any, bound: Any
) -> tuple[Any, Callable[..., Any]]:
    """uint64: bit i says whether rows[row, begin + i], of which there must be 64, is not below `bound`. NaN is not."""
    check_contiguous(rows)

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        code = Generation(context, builder, signature, arguments)
        numbers, begins = code.row(0, code.index(1)), code.index(2)
        least = code.repeated(code.single(3, rows.dtype), LANES).value
        word = _WORD(0)
        for place in range(0, WORD_BITS, LANES):
            found = numbers.load(builder.add(begins, begins.type(place)), LANES)
            bits = builder.bitcast(builder.fcmp_unordered(">=", found.value, least), ir.IntType(LANES))
            word = builder.or_(word, builder.shl(builder.zext(bits, _WORD), _WORD(place)))
        return word

    return types.uint64(rows, row, begin, bound), generate


def _of_word(name: str, *flags: Any) -> Any:
    """What LLVM's function of this name says of an integer."""

    @generated
    def count(typing_context: Any, word: Any) -> tuple[Any, Callable[..., Any]]:
        def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
            kinds = [_WORD, *(flag.type for flag in flags)]
            function = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
                builder.module, ir.FunctionType(_WORD, kinds), f"llvm.{name}.i64"
            )
            return builder.call(function, [arguments[0], *flags])

        return types.int64(types.uint64), generate

    return count


bits_set = _of_word("ctpop")
lowest_bit = _of_word("cttz", ir.IntType(1)(1))  # of an integer that is not 0


@generated
def count_larger(
    typing_context: Any, rows: Any, row: Any, count: Any, places: Any
) -> tuple[Any, Callable[..., Any]]:
    """places[i] = how many of rows[row, :count] are larger than rows[row, i], for i < count.

    Both arrays must have room for `count` rounded up to a multiple of LANES; places int32.
    """
    check_contiguous(rows, places)

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        code = Generation(context, builder, signature, arguments)
        numbers, size = code.row(0, code.index(1)), code.index(2)
        zero, one, kind = size.type(0), size.type(1), of_count(_PLACE, LANES)
        total = cgutils.alloca_once(builder, kind)  # type: ignore[no-untyped-call]
        step = size.type(LANES)
        with cgutils.for_range_slice(builder, zero, size, step, size.type) as (begin, _):
            own = numbers.load(begin, LANES)
            builder.store(constant(kind, 0), total)
            with cgutils.for_range_slice(builder, zero, size, one, size.type) as (other, _):
                against = code.repeated(numbers.load(other, 1).value, LANES)
                larger = builder.fcmp_ordered(">", against.value, own.value)
                builder.store(builder.sub(builder.load(total), builder.sext(larger, kind)), total)
            place = builder.bitcast(code.begin(3, begin), kind.as_pointer())
            builder.store(builder.load(total), place, align=4)
        return context.get_dummy_value()

    return types.void(rows, row, count, places), generate


@generated
def greatest_of_groups(
    typing_context: Any, rows: Any, row: Any, groups: Any, out: Any
) -> tuple[Any, Callable[..., Any]]:
    """out[0, g] = the greatest of rows[row, g], rows[row, g + groups], ...: as many as all groups have. out `[1, >= groups]`.

    A tuple: the least and the greatest of the first `groups` of out[0].
    """
    check_contiguous(rows, out)
    result = types.UniTuple(rows.dtype, 2)  # type: ignore[no-untyped-call]

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        code = Generation(context, builder, signature, arguments)
        numbers, found, size = code.row(0, code.index(1)), code.row(3, code.index(2).type(0)), code.index(2)
        single = context.get_value_type(rows.dtype)
        whole = builder.sub(code.columns(0), builder.srem(code.columns(0), size))
        ends = [
            cgutils.alloca_once_value(builder, single(number))  # type: ignore[no-untyped-call]
            for number in (float("inf"), -float("inf"))
        ]

        def of_columns(column: Any, count: int) -> None:
            total = cgutils.alloca_once(builder, of_count(single, count))  # type: ignore[no-untyped-call]
            builder.store(numbers.load(column, count).value, total)
            with cgutils.for_range_slice(builder, size, whole, size, size.type) as (begin, _):
                further = numbers.load(builder.add(begin, column), count)
                greater = _chosen(">", further, Numbers(builder, builder.load(total)))
                builder.store(greater.value, total)
            greatest = Numbers(builder, builder.load(total))
            found.store(column, count, greatest.value)
            for end, sign in zip(ends, "<>", strict=True):
                one = greatest.folded(partial(_chosen, sign))
                builder.store(_chosen(sign, one, Numbers(builder, builder.load(end))).value, end)

        code.over_columns(size, of_columns)
        return context.make_tuple(builder, result, [builder.load(end) for end in ends])

    return result(rows, row, groups, out), generate


def _chosen(sign: str, first: Numbers, second: Numbers) -> Numbers:
    """The first where it is less or greater than the second; else the second."""
    builder = first.builder
    is_first = builder.fcmp_ordered(sign, first.value, second.value)
    return Numbers(builder, builder.select(is_first, first.value, second.value))


@generated
def add_to_each(
    typing_context: Any, out: Any, place: Any, rows: Any, row: Any, count: Any, number: Any
) -> tuple[Any, Callable[..., Any]]:
    """out[0, place + j] = rows[row, j] + number for j < count rounded up to LANES, for which both must have room."""
    check_contiguous(out, rows)

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        code = Generation(context, builder, signature, arguments)
        written, read, size = code.row(0, code.index(1).type(0)), code.row(2, code.index(3)), code.index(4)
        added = code.repeated(code.single(5, rows.dtype), LANES)
        step = size.type(LANES)
        with cgutils.for_range_slice(builder, size.type(0), size, step, size.type) as (column, _):
            total = read.load(column, LANES) + added
            written.store(builder.add(code.index(1), column), LANES, total.value)
        return context.get_dummy_value()

    return types.void(out, place, rows, row, count, number), generate
