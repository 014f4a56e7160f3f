"""The k best sub-keys of each half of a query, on a GPU: exact, and only scores that can win are written.

The CPU's way (workers/selection_kernels.py) for many queries at a time: a lower bound of the k-th best score, then what
reaches it, then a sort of that. A program takes TOKENS queries of one half.

- **Products on tensor cores.** A float32 is split into a high and a low part of 11 significant bits each, which
  TensorFloat-32 holds (`_split_kernel`); low*high + high*low + high*high, summed in float32, is as exact as products of
  float32 are (2**-21, relative to the sum of the absolute products). A part of an infinity is itself, the other 0; what the
  low parts add is left out where it is no finite number.
- **Bound** (`_bound_kernel`). high*high alone gives each score to within ERROR of that sum, which is at most the query's sum
  of absolute numbers times the largest number of the sub-keys. Of interleaved groups, at least 2k, each has a maximum; k of
  the maxima reach what halving an interval finds; so k scores reach that, less the error. Of scores of a normal distribution
  about 46 do for k = 32, hardly ever more than 64.
- **Best** (`_best_kernel`). Scores come again, now exact, and those not below the bound go to the program's scratch line of
  the query. When a line may have no room for the next scores, and at the end, lines are sorted, K entries at a time, and
  merged into the best so far. As a rule only the end comes: ties and sorted sub-keys cost time, and change nothing.

What decides about the speed is what a thread holds, and what threads pass on to each other. Queries stay in shared memory,
where tensor cores read them; `_by_thread` takes scores as tensor cores leave them, four threads to a query, and four threads
sort a query's.
Letters: T queries of a program, B sub-keys at a time, C columns, a power of two, K >= k of a query's best.
"""

# `tl` is a module only where kernels run; elsewhere "tl.constexpr" names nothing.
# pyright: reportInvalidTypeForm=false
from __future__ import annotations

import torch
from torch import Tensor

from workers.gpu.compilation import kernel, kernel_for_any, power_of_two, tl
from workers.gpu.packed_scores import LEAST, by_query, for_four_threads, index_of, merged, packed, score_of

TOKENS = 64  # of a program at a time
WARPS = TOKENS // 16  # tensor cores give a warp 16 rows
SUB_KEYS = 32  # at a time, where scores are exact
GROUPS = 64
# More of either find no room: parts of TOKENS queries and of twice K sub-keys in shared memory, what is sorted in registers.
COLUMNS_MAX, K_MAX = 256, 64
HALVINGS = 8
# Of a sum of absolute products: parts that are left out, 2 * 2**-11, and an eighth more for rounded sums.
ERROR = 1.125 * 2**-10
TINY = 2.0**-120  # and for products so small that they are rounded as no others are


def best_of_halves(queries: Tensor, sub_keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best scores of each half float32, best first, and their sub-keys int32:
    both `[2H, T / TOKENS, K, TOKENS]`, K >= k.

    queries `[T, H, 2, C]`, sub_keys `[H, 2, n, C]`, both float32 and contiguous; T > 0, C <= COLUMNS_MAX,
    k <= K_MAX. A half with a NaN among its scores has a NaN as its best.
    """
    tokens, heads, _, width = queries.shape
    n, units, device = sub_keys.shape[2], 2 * heads, queries.device
    blocks = -(-tokens // TOKENS)
    k_padded = max(16, power_of_two(k))
    groups = max(GROUPS, 2 * k_padded)
    columns = max(16, power_of_two(width))  # tl.dot takes no fewer
    query_parts = _split(queries.flatten(1, 2).transpose(0, 1), TOKENS, columns)
    key_parts = _split(sub_keys.flatten(0, 1), groups, columns)

    sizes = torch.linalg.vector_norm(queries, ord=1, dim=-1)
    largest = torch.linalg.vector_norm(sub_keys, ord=torch.inf, dim=(2, 3))
    bounds = torch.empty(units, blocks * TOKENS, device=device)
    _bound_kernel[(blocks, units)](
        query_parts, key_parts, sizes, largest, bounds, tokens, n, k, T=TOKENS, B=groups, C=columns,
        HALVINGS=HALVINGS, ERROR=ERROR, TINY=TINY, num_warps=WARPS, num_stages=1,
    )  # fmt: skip

    scores = torch.empty(units, blocks, k_padded, TOKENS, device=device)
    indices = torch.empty_like(scores, dtype=torch.int32)
    programs = min(blocks * units, _programs(device, columns))
    room = 2 * groups
    lines = torch.empty(programs, room, TOKENS, dtype=torch.int64, device=device)
    _best_kernel[(programs,)](
        query_parts, key_parts, bounds, lines, scores, indices, tokens, units, n, key_parts.shape[1],
        T=TOKENS, B=min(SUB_KEYS, 4096 // columns), C=columns, K=k_padded, ROOM=room, num_warps=WARPS, num_stages=1,
    )  # fmt: skip
    return scores, indices


def _split(numbers: Tensor, multiple: int, columns: int) -> Tensor:
    """High and low parts `[U, N, 2, columns]` of numbers `[U, N, C]`, with 0 up to the multiple of N and the columns."""
    units, rows, width = numbers.shape
    padded = -(-rows // multiple) * multiple
    parts = torch.empty(units, padded, 2, columns, device=numbers.device)
    at_once = min(multiple, 1024 // columns)
    _split_kernel[(padded // at_once, units)](
        numbers, parts, numbers.stride(0), numbers.stride(1), rows, width, padded, R=at_once, C=columns
    )
    return parts


def _programs(device: torch.device, columns: int) -> int:
    """How many find room at once: each has scratch lines for its queries, which it uses again."""
    if device.type != "cuda":
        return 3
    return (3 if columns <= 64 else 2) * torch.cuda.get_device_properties(device).multi_processor_count


@kernel
def _high_and_low(numbers):  # type: ignore[no-untyped-def]  # Triton's language has no types to give
    """Two float32, of which the last 13 bits are 0."""
    bits = numbers.to(tl.int32, bitcast=True)
    high = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    # The largest numbers are not rounded to infinity.
    high = tl.where(tl.abs(high) < float("inf"), high, (bits & -0x2000).to(tl.float32, bitcast=True))
    finite = tl.abs(numbers) < float("inf")
    high = tl.where(finite, high, numbers)
    bits = tl.where(finite, numbers - high, 0.0).to(tl.int32, bitcast=True)
    return high, ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


@kernel
def _high_parts(parts, first, rows, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where the high parts of these rows `[R]` after the first are, `[R, C]`; the low parts are C numbers behind."""
    return parts + first * (2 * C) + (rows[:, None] * (2 * C) + tl.arange(0, C)[None, :])


@kernel_for_any("rows", "padded")
def _split_kernel(  # type: ignore[no-untyped-def]
    numbers, parts, unit_stride, row_stride, rows, width, padded, R: tl.constexpr, C: tl.constexpr
):
    """See `_split`. R rows at a time."""
    unit, first = tl.program_id(1).to(tl.int64), tl.program_id(0).to(tl.int64) * R
    row, column = (first + tl.arange(0, R))[:, None], tl.arange(0, C)[None, :]
    exists = (row < rows) & (column < width)
    at = numbers + (unit * unit_stride + row * row_stride + column)
    high, low = _high_and_low(tl.load(at, mask=exists, other=0.0))
    at = _high_parts(parts, unit * padded + first, tl.arange(0, R), C)
    tl.store(at, high)
    tl.store(at + C, low)


@kernel_for_any("tokens", "n")
def _bound_kernel(  # type: ignore[no-untyped-def]
    query_parts, key_parts, sizes, largest, bounds, tokens, n, k,
    T: tl.constexpr, B: tl.constexpr, C: tl.constexpr, HALVINGS: tl.constexpr, ERROR: tl.constexpr, TINY: tl.constexpr,
):  # fmt: skip
    """See the module. What reaches a bound is not below it: so all scores reach NaN."""
    unit = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * T + tl.arange(0, T)
    first_query = (unit * tl.num_programs(0) + tl.program_id(0)) * T
    first_key = unit * (tl.cdiv(n, B) * B)
    queries = tl.load(_high_parts(query_parts, first_query, tl.arange(0, T), C))
    maxima = tl.full((T, B), -float("inf"), tl.float32)
    for begin in range(0, n, B):
        keys = tl.load(_high_parts(key_parts, first_key + begin, tl.arange(0, B), C))
        scores = tl.dot(queries, keys.T, input_precision="tf32")
        exists = begin + tl.arange(0, B) < n
        maxima = tl.maximum(maxima, tl.where(exists[None, :], scores, -float("inf")))

    low, beyond = tl.min(maxima, axis=1), tl.max(maxima, axis=1)
    for _ in range(HALVINGS):
        middle = 0.5 * low + 0.5 * beyond
        enough = tl.sum((maxima >= middle[:, None]).to(tl.int32), axis=1) >= k
        low, beyond = tl.where(enough, middle, low), tl.where(enough, beyond, middle)
    exists = token < tokens
    size = tl.load(sizes + (token.to(tl.int64) * tl.num_programs(1) + unit), mask=exists, other=0.0)
    bound = low - (ERROR * size * tl.load(largest + unit) + TINY)
    # Where high parts alone make infinity, all of it may still be finite.
    bound = tl.where(tl.abs(low) < float("inf"), bound, -float("inf"))
    tl.store(bounds + first_query + tl.arange(0, T), tl.where(exists, bound, float("inf")))


@kernel_for_any("tokens", "n", "n_padded")
def _best_kernel(  # type: ignore[no-untyped-def]
    query_parts, key_parts, bounds, lines, out_scores, out_indices, tokens, units, n, n_padded,
    T: tl.constexpr, B: tl.constexpr, C: tl.constexpr, K: tl.constexpr, ROOM: tl.constexpr,
):  # fmt: skip
    """See the module. Programs take blocks of queries in turn."""
    blocks = tl.cdiv(tokens, T)
    row = tl.arange(0, T)
    line = lines + tl.program_id(0).to(tl.int64) * (ROOM * T)
    for task in range(tl.program_id(0), blocks * units, tl.num_programs(0)):
        first_query = tl.cast(task, tl.int64) * T
        first_key = (task // blocks).to(tl.int64) * n_padded
        queries_at = _high_parts(query_parts, first_query, _for_threads(T), C)
        queries, low_queries = tl.load(queries_at), tl.load(queries_at + C)
        bound = tl.load(bounds + first_query + row)
        best = tl.full((T, K), LEAST, tl.int64)
        begin = 0
        while begin < n:
            fill = tl.zeros((T,), tl.int32)
            most = 0
            while (begin < n) & (most <= ROOM - B):
                keys_at = _high_parts(key_parts, first_key + begin, tl.arange(0, B), C)
                scores = _products(queries, low_queries, tl.load(keys_at).T, tl.load(keys_at + C).T)
                # Those of no sub-key may be kept, but k <= n come before them.
                exists = begin + tl.arange(0, B) < n
                scores = _by_thread(tl.where(exists[None, :], scores, -float("inf")), T, B)
                kept = tl.sum(tl.where(scores < bound[:, None, None], 0, 1), axis=2)
                place = fill[:, None] + tl.cumsum(kept, axis=1) - kept
                _append(
                    scores, begin + _columns(B), bound[:, None], line + row[:, None], place * T, T, B // 4
                )
                fill += tl.sum(kept, axis=1)
                most = tl.max(fill, axis=0)
                begin += B
            # Other threads read a line than have written it, and write it next.
            tl.debug_barrier()
            best = _merge_lines(best, line, fill, most, T, K)
            tl.debug_barrier()
        place = first_query * K + (tl.arange(0, K)[None, :] * T + row[:, None])
        tl.store(out_scores + place, score_of(best))
        tl.store(out_indices + place, index_of(best))


@kernel
def _products(queries, low_queries, keys, low_keys):  # type: ignore[no-untyped-def]
    """The sum of the three, the small ones first; they are nothing where an infinity makes them none."""
    small = tl.dot(low_queries, keys, input_precision="tf32")
    small = tl.dot(queries, low_keys, small, input_precision="tf32")
    small = tl.where(tl.abs(small) < float("inf"), small, 0.0)
    return tl.dot(queries, keys, small, input_precision="tf32")


@kernel
def _for_threads(T: tl.constexpr):  # type: ignore[no-untyped-def]
    """The queries `[T]` by the row of the product that they are for, so that `_by_thread` moves no score."""
    row = tl.arange(0, T)
    return row // 8 % 2 * (T // 2) + row // 16 * 8 + row % 8


@kernel
def _by_thread(scores, T: tl.constexpr, B: tl.constexpr):  # type: ignore[no-untyped-def]
    """`[T, B]` as tensor cores leave it, to `[T, 4, B / 4]`: query; thread; what the thread has of it, as `_columns` says."""
    scores = tl.reshape(scores, [T // 16, 2, 8, B // 8, 4, 2])
    return tl.reshape(tl.permute(scores, [1, 0, 2, 4, 3, 5]), [T, 4, B // 4])


@kernel
def _columns(B: tl.constexpr):  # type: ignore[no-untyped-def]
    """`[1, 4, B / 4]`."""
    thread, own = tl.arange(0, 4)[None, :, None], tl.arange(0, B // 4)[None, None, :]
    return own // 2 * 8 + thread * 2 + own % 2


@kernel
def _append(scores, indices, bound, line, place, T: tl.constexpr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write those of scores `[T, 4, N]` that are not below bound `[T, 1]`, with indices `[1, 4, N]`, into lines `[T, 1]`.

    place `[T, 4]`: where in the line each thread begins; where it ends comes back. A thread's scores come one after the
    other, since a place follows from those before; by halves, since a block can be split in no other way.
    """
    if N == 1:
        score, index = tl.reshape(scores, [T, 4]), tl.reshape(indices, [1, 4])
        entry = (score.to(tl.int32, bitcast=True).to(tl.int64) << 32) | index.to(tl.int64)
        step = tl.where(score < bound, 0, T)  # a NaN is not below
        tl.store(line + place.to(tl.int64), entry, mask=step != 0)
        place += step
    else:
        score0, score1 = tl.split(tl.permute(tl.reshape(scores, [T, 4, 2, N // 2]), [0, 1, 3, 2]))
        index0, index1 = tl.split(tl.permute(tl.reshape(indices, [1, 4, 2, N // 2]), [0, 1, 3, 2]))
        place = _append(score0, index0, bound, line, place, T, N // 2)
        place = _append(score1, index1, bound, line, place, T, N // 2)
    return place


@kernel
def _merge_lines(best, line, fill, most, T: tl.constexpr, K: tl.constexpr):  # type: ignore[no-untyped-def]
    """The K best of best `[T, K]`, the best first, and of the first fill `[T]` entries of every line, at most `most`."""
    number, query = for_four_threads(T, K)
    for begin in range(0, most, K):
        entry = by_query(tl.load(line + begin * T + (number * T + query)), T, K)
        exists = begin + tl.arange(0, K)[None, :] < fill[:, None]
        entry = packed((entry >> 32).to(tl.int32).to(tl.float32, bitcast=True), entry.to(tl.int32))
        best = merged(best, tl.where(exists, entry, LEAST))
    return best
