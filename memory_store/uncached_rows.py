"""Writing rows past the caches.

Before a processor writes part of a cache line it reads the line from memory; of rows that are written whole, that is
a third of all traffic for nothing. And what is written pushes out of the caches what will be read next. A line that
is stored whole past the caches costs its bytes once. It pays for results larger than the caches alone: smaller ones
are there when the next reader comes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from memory_store.compilation import compiled
from memory_store.prefetching import LINE_BYTES, element_pointer

LARGE_BYTES = 32 << 20
LONG_ROW_BYTES = 512  # shorter ones wait longer for their way in than they save on the way out


def goes_past_caches(target: NDArray[Any]) -> bool:
    """Whether `target` `[U, D]` is larger than the caches, and its rows are long and made of whole cache lines."""
    row_bytes = target.shape[1] * target.itemsize
    return (
        target.nbytes >= LARGE_BYTES
        and row_bytes >= LONG_ROW_BYTES
        and row_bytes % LINE_BYTES == 0
        and target.ctypes.data % LINE_BYTES == 0
    )


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def _copy_line(
    typing_context: Any, source: Any, row: Any, target: Any, target_row: Any, column: Any
) -> tuple[Any, Callable[..., Any]]:
    """target[target_row, column : column + L] = source[row, column : column + L], L numbers of a line of target."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        stored, wanted = source.dtype, target.dtype
        lanes = LINE_BYTES * 8 // wanted.bitwidth
        number = context.get_value_type(wanted)
        from_type = ir.VectorType(context.get_value_type(stored), lanes)
        place = element_pointer(
            context,
            builder,
            source,
            arguments[0],
            signature.args[1],
            arguments[1],
            signature.args[4],
            arguments[4],
        )
        line = builder.load(builder.bitcast(place, from_type.as_pointer()), align=stored.bitwidth // 8)
        if stored == types.uint16:  # bfloat16: the upper half of a float32
            whole = ir.VectorType(ir.IntType(32), lanes)
            upper = ir.Constant(whole, [16] * lanes)
            line = builder.bitcast(
                builder.shl(builder.zext(line, whole), upper), ir.VectorType(number, lanes)
            )
        place = element_pointer(
            context,
            builder,
            target,
            arguments[2],
            signature.args[3],
            arguments[3],
            signature.args[4],
            arguments[4],
        )
        store = builder.store(
            line, builder.bitcast(place, ir.VectorType(number, lanes).as_pointer()), align=LINE_BYTES
        )
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(source, row, target, target_row, column), generate


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def finish_lines(typing_context: Any) -> tuple[Any, Callable[..., Any]]:
    """Wait until all lines that this thread has written are where other threads read them."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@compiled(inline=True)
def copy_row(
    source: NDArray[Any], row: int | np.int64, target: NDArray[Any], target_row: int | np.int64
) -> None:
    """target[target_row] = the numbers stored in source[row], past the caches.

    The rows of target are whole lines; its thread calls `finish_lines` in the end.
    """
    for column in range(0, target.shape[1], LINE_BYTES // target.itemsize):
        _copy_line(source, row, target, target_row, column)  # type: ignore[call-arg]  # Numba passes the context
