"""The k best sub-keys of each half of a query, on a GPU: exact, and only scores that can win are written.

The CPU's way (workers/selection_kernels.py) for many queries at a time: a lower bound of the k-th best score, then what
reaches it, then a sort of that. A program takes TOKENS queries of one half, B sub-keys at a time.

- **Products on tensor cores.** A float32 is split into a high and a low part of 11 significant bits each, which
  TensorFloat-32 holds; high*high + high*low + low*high, summed in float32, is as exact as products of
  float32 are (2**-21, relative to the sum of the absolute products). Sub-keys are split once (`_split_kernel`), queries in each program. A part of an infinity
  is itself, the other 0; what the low parts add is left out where it is no finite number.
- **Bound** (`_bound_kernel`). high*high alone gives each score to within ERROR of that sum, which is at most the query's sum
  of absolute numbers times the largest number of the sub-keys. Of B interleaved groups, each has a maximum; k of the maxima
  reach what halving an interval finds; so k scores reach that, less the error. With B = 64 and scores of a normal
  distribution about 46 do for k = 32, hardly ever more than 64.
- **Keep** (`_best_kernel`). Scores come again, now exact, and those not below the bound go to the program's scratch line,
  each thread's one after the other: where it begins is known from counting first. A line with no room for the next B scores
  is sorted, B at a time, and merged into the best so far; as a rule that happens once, at the end. So ties and sorted
  sub-keys cost time, and change nothing.

How a program's threads hold the scores decides what this costs. `_by_lane` gives scores the order in which tensor cores
leave them, four threads to a query: what follows moves no score to another thread, until the sort.

A score and its index are packed into one integer of 64 bits whose order is that of the scores, and among equal scores
that of the indices, lowest first. NaN is before all: it is kept by every bound, so that it comes out as the best.
"""

# `tl` is a module only where kernels run; elsewhere "tl.constexpr" names nothing.
# pyright: reportInvalidTypeForm=false
from __future__ import annotations

import torch
from torch import Tensor

from workers.gpu.compilation import kernel, kernel_for_any, power_of_two, tl

TOKENS, GROUPS, COLUMNS = 64, 64, 64  # of a program at a time
WARPS = TOKENS // 16  # tensor cores give a warp 16 rows
REGISTERS_MAX = 255  # of a thread: what is sorted lies there, and two programs find room beside each other
HALVINGS = 8
# Of a sum of absolute products: parts that are left out, 2 * 2**-11, and an eighth more for rounded sums.
ERROR = 1.125 * 2**-10
TINY = 2.0**-120  # and for products so small that they are rounded as no others are


def best_of_halves(queries: Tensor, sub_keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best scores of each half float32, best first, and their sub-keys int32:
    both `[2H, T / TOKENS, K, TOKENS]`, K >= k.

    queries `[T, H, 2, C]`, sub_keys `[H, 2, n, C]`, both float32 and contiguous; T > 0. A half with a NaN among its scores
    has a NaN as its best.
    """
    tokens, heads, _, width = queries.shape
    n, units, device = sub_keys.shape[2], 2 * heads, queries.device
    k_padded = max(16, power_of_two(k))
    groups = max(GROUPS, 2 * k_padded)
    columns = max(16, min(COLUMNS, power_of_two(width)))  # tl.dot takes no fewer
    padded = -(-width // columns) * columns
    n_padded = -(-n // groups) * groups

    parts = torch.empty(2, units, n_padded, padded, device=device)
    numbers = parts[0].numel()
    _split_kernel[(-(-numbers // 1024),)](sub_keys, parts, n, width, n_padded, padded, numbers, BLOCK=1024)
    # NaN and infinities make the bound one that all scores reach.
    largest = sub_keys.abs().amax(dim=(2, 3))
    bounds = torch.empty(units, tokens, device=device)
    blocks = -(-tokens // TOKENS)
    sizes = {"T": TOKENS, "B": groups, "W": columns, "C": padded}
    compilation = {"num_warps": WARPS, "num_stages": 1, "maxnreg": REGISTERS_MAX}
    _bound_kernel[(blocks, units)](
        queries, parts, largest, bounds, tokens, units, n, n_padded, width, k,
        HALVINGS=HALVINGS, ERROR=ERROR, TINY=TINY, **sizes, **compilation,
    )  # fmt: skip
    scores = torch.empty(units, blocks, k_padded, TOKENS, device=device)
    indices = torch.empty_like(scores, dtype=torch.int32)
    programs = min(blocks * units, _programs(device))
    lines = torch.empty(programs, 2 * groups, TOKENS, dtype=torch.int64, device=device)
    _best_kernel[(programs,)](
        queries, parts, bounds, lines, scores, indices, tokens, units, n, n_padded, width,
        K=k_padded, STAY=int(_queries_stay(device)), **sizes, **compilation,
    )  # fmt: skip
    return scores, indices


def _programs(device: torch.device) -> int:
    """How many find room at once: each has a scratch line for its queries, which it uses again."""
    if device.type != "cuda":
        return 3
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count


def _queries_stay(device: torch.device) -> bool:
    """Whether tensor cores read them from shared memory, where they can stay; else they would take the registers."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)


@kernel
def _parts(numbers):  # type: ignore[no-untyped-def]  # Triton's language has no types to give
    """The high and the low part, float32 of which the last 13 bits are 0."""
    bits = numbers.to(tl.int32, bitcast=True)
    high = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    # The largest numbers are not rounded to infinity.
    high = tl.where(tl.abs(high) < float("inf"), high, (bits & -0x2000).to(tl.float32, bitcast=True))
    finite = tl.abs(numbers) < float("inf")
    high = tl.where(finite, high, numbers)
    bits = tl.where(finite, numbers - high, 0.0).to(tl.int32, bitcast=True)
    return high, ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


@kernel
def _split_kernel(  # type: ignore[no-untyped-def]
    sub_keys, parts, n, width, n_padded, padded, numbers, BLOCK: tl.constexpr
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column, row = place % padded, place // padded
    index, unit = row % n_padded, row // n_padded
    exists = (column < width) & (index < n)
    number = tl.load(sub_keys + (unit * n + index) * width + column, mask=exists, other=0.0)
    high, low = _parts(number)
    tl.store(parts + place, high, mask=place < numbers)
    tl.store(parts + numbers + place, low, mask=place < numbers)


@kernel
def _queries_read(  # type: ignore[no-untyped-def]
    queries, first_token, unit, tokens, units, first_column, width, T: tl.constexpr, W: tl.constexpr
):
    """float32 `[T, W]`, 0 where there is none, in the order that `_by_lane` turns into that of the tokens."""
    row = tl.arange(0, T)
    token = first_token + row // 8 % 2 * (T // 2) + row // 16 * 8 + row % 8
    column = first_column + tl.arange(0, W)
    place = (token[:, None].to(tl.int64) * units + unit) * width + column[None, :]
    return tl.load(queries + place, mask=(token[:, None] < tokens) & (column[None, :] < width), other=0.0)


@kernel
def _sub_keys_read(
    parts, unit, begin, first_column, n_padded, B: tl.constexpr, W: tl.constexpr, C: tl.constexpr
):  # type: ignore[no-untyped-def]
    """`[W, B]` of one of the parts."""
    index, column = begin + tl.arange(0, B), first_column + tl.arange(0, W)
    return tl.load(parts + (unit.to(tl.int64) * n_padded + index[:, None]) * C + column[None, :]).T


@kernel
def _by_lane(numbers, T: tl.constexpr, B: tl.constexpr):  # type: ignore[no-untyped-def]
    """`[T, B]` as tensor cores leave it, to `[T, 4, B / 4]`: query, in order; thread; what the thread has of it."""
    numbers = tl.reshape(numbers, [T // 16, 2, 8, B // 8, 4, 2])
    return tl.reshape(tl.permute(numbers, [1, 0, 2, 4, 3, 5]), [T, 4, B // 4])


@kernel_for_any("tokens")
def _bound_kernel(  # type: ignore[no-untyped-def]
    queries, parts, largest, bounds, tokens, units, n, n_padded, width, k,
    T: tl.constexpr, B: tl.constexpr, W: tl.constexpr, C: tl.constexpr, HALVINGS: tl.constexpr, ERROR: tl.constexpr,
    TINY: tl.constexpr,
):  # fmt: skip
    """See the module."""
    first_token = tl.program_id(0) * T
    unit = tl.program_id(1)
    query = _queries_read(queries, first_token, unit, tokens, units, 0, width, T, W)
    size = tl.sum(tl.abs(query), axis=1)
    high, _ = _parts(query)
    for column in range(W, C, W):
        size += tl.sum(
            tl.abs(_queries_read(queries, first_token, unit, tokens, units, column, width, T, W)), axis=1
        )
    maxima = tl.full((T, B), -float("inf"), tl.float32)
    for begin in range(0, n, B):
        scores = tl.dot(
            high, _sub_keys_read(parts, unit, begin, 0, n_padded, B, W, C), input_precision="tf32"
        )
        for column in range(W, C, W):
            more, _ = _parts(_queries_read(queries, first_token, unit, tokens, units, column, width, T, W))
            keys = _sub_keys_read(parts, unit, begin, column, n_padded, B, W, C)
            scores = tl.dot(more, keys, scores, input_precision="tf32")
        exists = begin + tl.arange(0, B) < n
        maxima = tl.maximum(maxima, tl.where(exists[None, :], scores, -float("inf")))

    maxima = tl.reshape(_by_lane(maxima, T, B), [T, B])
    low, beyond = tl.min(maxima, axis=1), tl.max(maxima, axis=1)
    for _ in range(HALVINGS):
        middle = 0.5 * low + 0.5 * beyond
        enough = tl.sum((maxima >= middle[:, None]).to(tl.int32), axis=1) >= k
        low, beyond = tl.where(enough, middle, low), tl.where(enough, beyond, middle)
    size = tl.reshape(tl.permute(tl.reshape(size, [T // 16, 2, 8]), [1, 0, 2]), [T])
    bound = low - (ERROR * size * tl.load(largest + unit) + TINY)
    token = first_token + tl.arange(0, T)
    bound = tl.where(tl.abs(low) < float("inf"), bound, -float("inf"))
    tl.store(bounds + (unit.to(tl.int64) * tokens + token), bound, mask=token < tokens)


@kernel
def packed(scores, indices):  # type: ignore[no-untyped-def]
    """int64 whose order is that of the scores, and among equal ones the lower index before; NaN before all."""
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
def _append(scores, indices, bound, lines, place, T: tl.constexpr, W: tl.constexpr):  # type: ignore[no-untyped-def]
    """Put those of scores `[T, 4, W]` that are not below bound `[T, 1]`, with indices `[1, 4, W]`, into lines `[T, 1]`.

    place `[T, 4]`: T times the place in the line of each thread's first; what is after its last comes back. The number of
    steps from one score to the next is known only when it has been compared: so one score after the other, as a tree,
    since a block can be split into halves only.
    """
    if W == 1:
        score, index = tl.reshape(scores, [T, 4]), tl.reshape(indices, [1, 4])
        entry = (score.to(tl.int32, bitcast=True).to(tl.int64) << 32) | index.to(tl.uint32).to(tl.int64)
        step = tl.where(score < bound, 0, T)  # a NaN is not below
        tl.store(lines + place.to(tl.uint32).to(tl.int64), entry, mask=step != 0)
        place += step
    else:
        score0, score1 = tl.split(tl.permute(tl.reshape(scores, [T, 4, 2, W // 2]), [0, 1, 3, 2]))
        index0, index1 = tl.split(tl.permute(tl.reshape(indices, [1, 4, 2, W // 2]), [0, 1, 3, 2]))
        place = _append(score0, index0, bound, lines, place, T, W // 2)
        place = _append(score1, index1, bound, lines, place, T, W // 2)
    return place


@kernel
def _sort(  # type: ignore[no-untyped-def]
    line, fill, most, scores, indices, n, merged, T: tl.constexpr, B: tl.constexpr, K: tl.constexpr
):
    """Merge the first fill `[T]` entries of every line, at most `most`, into the K best so far `[K, T]`, of which there are
    some if `merged`; whether there are some now."""
    number, query = for_four_threads(T, B)
    place = tl.arange(0, K)[None, :] * T + tl.arange(0, T)[:, None]
    tl.debug_barrier()
    for begin in range(0, most, B):
        entry = of_query(tl.load(line + begin * T + (number * T + query)), T, B)
        index = entry.to(tl.int32)
        exists = (tl.arange(0, B)[None, :] < (fill - begin)[:, None]) & (index < n)
        entry = packed((entry >> 32).to(tl.int32).to(tl.float32, bitcast=True), index)
        best = tl.topk(tl.where(exists, entry, -0x8000000000000000), K)
        if merged:
            # The worst first: of one that falls and one that rises the larger ones, place by place, are the best of both.
            rising = (K - 1) * T - place + 2 * tl.arange(0, T)[:, None]
            before = packed(tl.load(scores + rising), tl.load(indices + rising))
            best = tl.bitonic_merge(tl.maximum(best, before), descending=True)
            tl.debug_barrier()
        tl.store(scores + place, score_of(best))
        tl.store(indices + place, index_of(best))
        tl.debug_barrier()
        merged = True
    return merged


@kernel_for_any("tokens")
def _best_kernel(  # type: ignore[no-untyped-def]
    queries, parts, bounds, lines, out_scores, out_indices, tokens, units, n, n_padded, width,
    T: tl.constexpr, B: tl.constexpr, W: tl.constexpr, C: tl.constexpr, K: tl.constexpr, STAY: tl.constexpr,
):  # fmt: skip
    """See the module. Programs take blocks of queries in turn."""
    blocks = tl.cdiv(tokens, T)
    row = tl.arange(0, T)
    line = lines + tl.program_id(0).to(tl.int64) * (2 * B * T)
    for task in range(tl.program_id(0), blocks * units, tl.num_programs(0)):
        unit, first_token = task // blocks, task % blocks * T
        high, low = _parts(_queries_read(queries, first_token, unit, tokens, units, 0, width, T, W))
        bound_at = bounds + (unit.to(tl.int64) * tokens + first_token + row)
        exists = first_token + row < tokens
        scores_at = out_scores + (unit.to(tl.int64) * blocks + task % blocks) * (K * T)
        indices_at = out_indices + (unit.to(tl.int64) * blocks + task % blocks) * (K * T)
        bound = tl.load(bound_at, mask=exists, other=float("inf"))
        fill = tl.zeros((T,), tl.int32)
        most = 0
        merged = most > 0
        for begin in range(0, n, B):
            if most > B:
                merged = _sort(line, fill, most, scores_at, indices_at, n, merged, T, B, K)
                fill = tl.zeros((T,), tl.int32)
            scores = tl.zeros((T, B), tl.float32)
            if STAY:
                scores = _product(high, low, parts, unit, units, begin, 0, n_padded, scores, B, W, C)
            for column in range(STAY * W, C, W):
                more = _queries_read(queries, first_token, unit, tokens, units, column, width, T, W)
                more, more_low = _parts(more)
                scores = _product(
                    more, more_low, parts, unit, units, begin, column, n_padded, scores, B, W, C
                )
            index = begin + tl.arange(0, B)
            scores = _by_lane(tl.where(index[None, :] < n, scores, -float("inf")), T, B)
            index = tl.reshape(tl.permute(tl.reshape(index, [1, B // 8, 4, 2]), [0, 2, 1, 3]), [1, 4, B // 4])
            # Read anew, so that the compiler compares anew below: to keep what was found here takes it longer.
            again = tl.load(bound_at, mask=exists, other=float("inf"), volatile=True)
            kept = tl.sum(tl.where(scores < again[:, None, None], 0, 1), axis=2)
            place = (fill[:, None] + tl.cumsum(kept, axis=1) - kept) * T
            _append(scores, index, bound[:, None], line + row[:, None], place, T, B // 4)
            fill += tl.sum(kept, axis=1)
            most = tl.max(fill, axis=0)
        _sort(line, fill, most, scores_at, indices_at, n, merged, T, B, K)


@kernel
def _product(  # type: ignore[no-untyped-def]
    high,
    low,
    parts,
    unit,
    units,
    begin,
    column,
    n_padded,
    scores,
    B: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
):
    """scores + the three products, the small ones first; they are nothing where an infinity makes them none."""
    keys = _sub_keys_read(parts, unit, begin, column, n_padded, B, W, C)
    low_keys = _sub_keys_read(parts, units + unit, begin, column, n_padded, B, W, C)
    small = tl.dot(high, low_keys, tl.dot(low, keys, input_precision="tf32"), input_precision="tf32")
    small = tl.where(tl.abs(small) < float("inf"), small, 0.0)
    return tl.dot(high, keys, scores + small, input_precision="tf32")


@kernel
def for_four_threads(T: tl.constexpr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """N numbers of each of T queries `[N / 4, 4 T]`, so that four threads sort a query's, each first its own, a column here:
    the number `[N / 4, 4 T]`, the query `[1, 4 T]`."""
    own, column = tl.arange(0, N // 4)[:, None], tl.arange(0, 4 * T)[None, :]
    return column // 2 % 4 * (N // 4) + own, column // 8 * 2 + column % 2


@kernel
def of_query(numbers, T: tl.constexpr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """`[N / 4, 4 T]`, as `for_four_threads` puts them, to `[T, N]`."""
    numbers = tl.reshape(numbers, [N // 4, T // 2, 4, 2])
    return tl.reshape(tl.permute(numbers, [1, 3, 2, 0]), [T, N])
