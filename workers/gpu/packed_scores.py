"""A score and its index in one integer of 64 bits, and how a GPU sorts these.

Their order is that of the scores, and among equal scores that of the indices, lowest first; NaN is before all. LEAST is
before none: the integer of what isn't there. Letters: T queries, K of their best, N of what is sorted.
"""

# `tl` is a module only where kernels run; elsewhere "tl.constexpr" names nothing.
# pyright: reportInvalidTypeForm=false
from __future__ import annotations

from typing import Any

from workers.gpu.compilation import kernel, tl, triton

LEAST: Any = tl.constexpr(-0x8000000000000000) if triton is not None else None


@kernel
def packed(scores, indices):  # type: ignore[no-untyped-def]  # Triton's language has no types to give
    """int64 of float32 and int32 of one shape."""
    scores = tl.where(scores == 0, 0.0, scores)  # -0 is no less than 0
    bits = tl.where(scores == scores, scores.to(tl.int32, bitcast=True), 0x7FFFFFFF)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (0xFFFFFFFF - indices.to(tl.int64))


@kernel
def score_of(packed):  # type: ignore[no-untyped-def]
    ordered = (packed >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@kernel
def index_of(packed):  # type: ignore[no-untyped-def]
    return (0xFFFFFFFF - (packed & 0xFFFFFFFF)).to(tl.int32)


@kernel
def best_of_both(falling, rising):  # type: ignore[no-untyped-def]
    """The K best of two `[T, K]`, the best first; of one the best is first, of the other last."""
    # The larger ones, place by place, are the best of both. They fall, then rise: so a merge sorts them.
    return tl.bitonic_merge(tl.maximum(falling, rising), descending=True)


@kernel
def merged(best, fresh):  # type: ignore[no-untyped-def]
    """The K best of best `[T, K]`, of which the best is first, and of fresh `[T, K]`, in any order."""
    return best_of_both(best, tl.sort(fresh))


@kernel
def for_four_threads(T: tl.constexpr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """The places of N numbers of each of T queries, so that four threads of one warp sort a query's: the number
    `[N / 4, 4 T]`, the query `[1, 4 T]`.

    A thread reads two columns, of two queries, and all their rows; what it sorts first is its own.
    """
    own, column = tl.arange(0, N // 4)[:, None], tl.arange(0, 4 * T)[None, :]
    return column // 2 % 4 * (N // 4) + own, column // 8 * 2 + column % 2


@kernel
def by_query(numbers, T: tl.constexpr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """`[N / 4, 4 T]`, as `for_four_threads` places them, to `[T, N]`."""
    numbers = tl.reshape(numbers, [N // 4, T // 2, 4, 2])
    return tl.reshape(tl.permute(numbers, [1, 3, 2, 0]), [T, N])
