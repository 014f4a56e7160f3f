"""Copying rows, also past the caches.

Before a processor writes part of a cache line it reads the line from memory; of rows that are written whole, that is
a third of all traffic for nothing. And what is written pushes out of the caches what will be read next. A line that
is stored whole past the caches costs its bytes once. It pays for results larger than the caches alone: smaller ones
are there when the next reader comes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from numba import types
from numpy.typing import NDArray

from memory_store.row_code import LINE_BYTES, Generation, check_contiguous, generated

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


def _copy(*, past_caches: bool) -> Any:
    @generated
    def copy_row(
        typing_context: Any, out: Any, target: Any, values: Any, first: Any, addresses: Any, entry: Any
    ) -> tuple[Any, Callable[..., Any]]:
        """out[target] = row addresses[entry] of `values`, whose row 0 has the address `first` (inside kernels only)."""
        check_contiguous(out, values, addresses)

        def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
            code = Generation(context, builder, signature, arguments)
            written, chosen = code.row(0, code.index(1)), [code.index(5)]
            (read,) = code.named_rows(2, 3, 4, chosen)
            (following,) = code.named_rows(2, 3, 4, code.later(4, chosen))

            def copy(column: Any, count: int) -> None:
                following.prefetch(column, count)
                written.store(column, count, read.load(column, count).value, past_caches=past_caches)

            code.over_columns(code.columns(0), copy)
            return context.get_dummy_value()

        return types.void(out, target, values, first, addresses, entry), generate

    return copy_row


copy_row = _copy(past_caches=False)
copy_row_past_caches = _copy(past_caches=True)


@generated
def finish_lines(typing_context: Any) -> tuple[Any, Callable[..., Any]]:
    """Wait until all lines that this thread has written are where other threads read them."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate
