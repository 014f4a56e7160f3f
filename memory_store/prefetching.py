"""Asking for a row's memory some rows before it is needed, so that its way from memory overlaps other work.

Rows are read at random: the processor can't foresee the next one, and without a word from us it waits for
each. A prefetch is a hint, it changes no result and can't fail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

# Rows. Measured for rows of 64 to 1024 numbers: fewer than eight come too late for short rows, and more gain nothing.
AHEAD = 12
LINE_BYTES = 64
_LINES_MAX = 16  # of longer rows the processor foresees the rest by itself


def element_pointer(
    context: Any, builder: Any, kind: Any, array: Any, row_type: Any, row: Any, column_type: Any, column: Any
) -> Any:
    """Where `array[row, column]` lies, as a pointer to a byte, while code is generated for an intrinsic."""
    pieces = context.make_array(kind)(context, builder, array)
    strides = cgutils.unpack_tuple(builder, pieces.strides, 2)  # type: ignore[no-untyped-call]
    places = [
        builder.mul(context.cast(builder, index, of, types.intp), stride)
        for index, of, stride in zip((row, column), (row_type, column_type), strides, strict=True)
    ]
    return builder.gep(builder.bitcast(pieces.data, ir.IntType(8).as_pointer()), [builder.add(*places)])


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def _prefetch_line(typing_context: Any, array: Any, row: Any, column: Any) -> tuple[Any, Callable[..., Any]]:
    """Prefetch the cache line of `array[row, column]`, where row is int64 and column an integer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = element_pointer(
            context, builder, array, arguments[0], row, arguments[1], column, arguments[2]
        )
        number = ir.IntType(32)
        prefetch = builder.module.declare_intrinsic(
            "llvm.prefetch",
            [address.type],
            ir.FunctionType(ir.VoidType(), [address.type, number, number, number]),
        )
        # Into the second cache: a core can wait for many more lines there than in its first, so twice the rows a
        # second come in.
        to_read, into_second_cache, data = number(0), number(2), number(1)
        builder.call(prefetch, [address, to_read, into_second_cache, data])
        return context.get_dummy_value()

    return types.void(array, row, column), generate


def prefetch_row(array: NDArray[Any], row: int | np.int64) -> None:
    """Ask for the first KiB of `array[row]`; the row must exist (inside kernels only)."""
    raise AssertionError("only for compiled code")


@overload(prefetch_row, inline="always")  # type: ignore[untyped-decorator, unused-ignore]
def _prefetch_row(array: Any, row: Any) -> Callable[..., None]:
    # A constant of the compiled code: `array.itemsize` is not, and a division by it costs as much as the prefetch.
    line = LINE_BYTES * 8 // array.dtype.bitwidth

    def lines_of_row(array: Any, row: Any) -> None:
        for column in range(0, min(array.shape[1], _LINES_MAX * line), line):
            _prefetch_line(array, row, column)  # type: ignore[call-arg]  # Numba passes the context

    return lines_of_row
