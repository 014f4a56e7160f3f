"""Exact top-k of product keys without writing all scores.

One program takes TOKENS queries of one head. For each half it multiplies them with BLOCK sub-keys at a time and merges
the scores into the k best so far; of the pairs of the two sorted halves only those with (i+1)(j+1) <= k can win, and the
k best of these are written. A score and its index are packed into one integer of 64 bits whose order is that of the
scores, and among equal scores that of the indices, lowest first: so ties are resolved as workers/selection_kernels.py
does. A query with a NaN among its scores gets k scores NaN. Sorting takes more instructions than the products, so BLOCK is k
as a rule: what is sorted is never much longer than what is kept.

The gradient needs no product of matrices: a query's is a weighted sum of k sub-keys, and a sub-key's a weighted sum of the
queries that chose it, which are the kernels of pooling.py with the sub-keys as the table.

Floor. Bytes: queries and sub-keys read once, rows (8) and scores (4) written once,
    4 T H 2C + 4 H 2 n C + 12 T H k,
over the bandwidth; and 4 T H n C operations in float32 over their rate, which is the larger of the two for any n that
matters. Letters: T tokens, H heads, n sub-keys, k selected, C = query_dim / 2.
"""

# `tl` is a module only where kernels run; elsewhere "tl.constexpr" names nothing.
# pyright: reportInvalidTypeForm=false
from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from workers.gpu.compilation import kernel, kernel_for_any, kernels_run_on, power_of_two, tl
from workers.gpu.pooling import pool, sum_by_row

TOKENS, BLOCK = 16, 32


def floor_bytes(tokens: int, heads: int, sub_keys: int, width: int, k: int) -> int:
    """Bytes that a selection must move; `width` is C."""
    return 4 * tokens * heads * 2 * width + 4 * heads * 2 * sub_keys * width + 12 * tokens * heads * k


def floor_operations(tokens: int, heads: int, sub_keys: int, width: int) -> int:
    """Multiplications and additions of the scores."""
    return 4 * tokens * heads * sub_keys * width


def select(queries: Tensor, sub_keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best pairs of every query: rows int64 and scores float32 `[T, H, k]`, best first; differentiable.

    queries `[T, H, 2, C]`, sub_keys `[H, 2, n, C]`, both float32; k <= n.
    """
    rows, scores = _Selection.apply(queries, sub_keys, k)  # type: ignore[no-untyped-call]
    return rows, scores


def select_reference(queries: Tensor, sub_keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`select` in torch operations, all scores written; ties as the kernel resolves them."""
    n = sub_keys.shape[2]
    scores = torch.einsum("thsc,hsnc->sthn", queries, sub_keys)
    best, chosen = _sorted(scores, k)
    first, second = candidates(k, queries.device)
    sums, places = _sorted(best[0][..., first] + best[1][..., second], k)
    rows = chosen[0].gather(-1, first[places]) * n + chosen[1].gather(-1, second[places])
    broken = scores.isnan().any(dim=-1).any(dim=0)[..., None]
    return torch.where(broken, torch.arange(k, device=rows.device), rows), sums.masked_fill(broken, torch.nan)


def _sorted(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, indices = scores.sort(dim=-1, descending=True, stable=True)
    return values[..., :k], indices[..., :k]


@lru_cache
def candidates(k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Places (i, j) in the sorted halves of the pairs that can win, by i, then j: two int64 `[pairs]`."""
    first = [i for i in range(k) for _ in range(k // (i + 1))]
    second = [j for i in range(k) for j in range(k // (i + 1))]
    return torch.tensor(first, device=device), torch.tensor(second, device=device)


class _Selection(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, sub_keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
        queries, sub_keys = queries.contiguous(), sub_keys.contiguous()
        if kernels_run_on(queries.device):
            rows, scores = _launch(queries, sub_keys, k)
        else:
            rows, scores = select_reference(queries, sub_keys, k)
        ctx.save_for_backward(queries, sub_keys, rows)
        ctx.mark_non_differentiable(rows)
        return rows, scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        queries, sub_keys, rows = ctx.saved_tensors
        _, heads, _, width = queries.shape
        n = sub_keys.shape[2]
        # Which of the H*2*n sub-keys each entry chose, as one bag of k for every token, head and half.
        of_halves = torch.stack([rows // n, rows % n], dim=2)
        units = torch.arange(2 * heads, device=rows.device).view(heads, 2, 1)
        chosen = (of_halves + units * n).view(-1, rows.shape[2])
        weights = gradient[:, :, None].expand(of_halves.shape).reshape(chosen.shape)
        query_gradient = pool(sub_keys.view(-1, width), chosen, weights).view_as(queries)
        sub_key_gradient = sum_by_row(2 * heads * n, chosen, weights, queries.view(-1, width))
        return query_gradient, sub_key_gradient.view_as(sub_keys), None


def _launch(queries: Tensor, sub_keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    tokens, heads, _, width = queries.shape
    rows = torch.empty(tokens, heads, k, dtype=torch.int64, device=queries.device)
    scores = torch.empty(tokens, heads, k, device=queries.device)
    first, second = candidates(k, queries.device)
    if tokens:
        _select_kernel[(-(-tokens // TOKENS), heads)](
            queries,
            sub_keys,
            first.int(),
            second.int(),
            rows,
            scores,
            tokens,
            heads,
            sub_keys.shape[2],
            width,
            k,
            first.numel(),
            T=TOKENS,
            B=max(BLOCK, power_of_two(k)),
            C=max(16, power_of_two(width)),  # tl.dot takes no less
            K=max(2, power_of_two(k)),
            P=max(2, power_of_two(first.numel())),
        )
    return rows, scores


@kernel
def _packed(scores, indices):  # type: ignore[no-untyped-def]  # Triton's language has no types to give
    """int64 whose order is that of the scores, and among equal ones the lower index before."""
    scores = tl.where(scores == 0, 0.0, scores)  # -0 is no less than 0
    bits = scores.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (0xFFFFFFFF - indices.to(tl.int64))


@kernel
def _score_of(packed):  # type: ignore[no-untyped-def]
    ordered = (packed >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@kernel
def _index_of(packed):  # type: ignore[no-untyped-def]
    return (0xFFFFFFFF - (packed & 0xFFFFFFFF)).to(tl.int32)


@kernel
def _best_of_half(  # type: ignore[no-untyped-def]
    queries, sub_keys, token, unit, tokens, units, n, width,
    T: tl.constexpr, B: tl.constexpr, C: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """The K best scores of a half, packed int64 `[T, K]`, the best last, and whether there was a NaN, int32 `[T]`."""
    column = tl.arange(0, C)
    query = tl.load(
        queries + (token[:, None].to(tl.int64) * units + unit) * width + column[None, :],
        mask=(token[:, None] < tokens) & (column[None, :] < width),
        other=0.0,
    )
    least = -0x8000000000000000
    best = tl.full((T, K), least, tl.int64)
    broken = tl.zeros((T,), tl.int32)
    for begin in range(0, n, B):
        index = begin + tl.arange(0, B)
        keys = tl.load(
            sub_keys + (unit.to(tl.int64) * n + index[None, :]) * width + column[:, None],
            mask=(index[None, :] < n) & (column[:, None] < width),
            other=0.0,
        )
        scores = tl.dot(query, keys, input_precision="ieee")
        exists = (index[None, :] < n) & (token[:, None] < tokens)
        broken |= tl.max(((scores != scores) & exists).to(tl.int32), axis=1)
        fresh = tl.where(exists, _packed(scores, index[None, :] + tl.zeros((T, B), tl.int32)), least)
        # One rises, the other falls: the larger ones, place by place, are the best of both, and rise, then fall or reversed.
        best = tl.bitonic_merge(tl.maximum(best, tl.topk(fresh, K)))
    return best, broken


@kernel_for_any("tokens")
def _select_kernel(  # type: ignore[no-untyped-def]
    queries, sub_keys, first_places, second_places, rows, out_scores,
    tokens, heads, n, width, k, pairs,
    T: tl.constexpr, B: tl.constexpr, C: tl.constexpr, K: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """See the module."""
    token = tl.program_id(0) * T + tl.arange(0, T)
    head = tl.program_id(1)
    best0 = tl.zeros((T, K), tl.int64)
    best1 = best0
    broken = tl.zeros((T,), tl.int32)
    for half in range(2):  # a loop: the code of one half is large, and once is enough of it
        best0 = best1
        best1, broken_half = _best_of_half(
            queries, sub_keys, token, 2 * head + half, tokens, 2 * heads, n, width, T, B, C, K
        )
        broken |= broken_half

    pair = tl.arange(0, P)
    place0 = tl.load(first_places + pair, mask=pair < pairs, other=0)[None, :] + tl.zeros((T, P), tl.int32)
    place1 = tl.load(second_places + pair, mask=pair < pairs, other=0)[None, :] + tl.zeros((T, P), tl.int32)
    sums = _score_of(tl.gather(best0, K - 1 - place0, 1)) + _score_of(tl.gather(best1, K - 1 - place1, 1))
    everything = _packed(sums, pair[None, :] + tl.zeros((T, P), tl.int32))
    winners = tl.topk(tl.where(pair[None, :] < pairs, everything, -0x8000000000000000), K)

    # Of a broken query, and behind the k-th winner, the numbers mean nothing: its places must still exist.
    winner = tl.minimum(tl.maximum(_index_of(winners), 0), P - 1)
    chosen0 = _index_of(tl.gather(best0, K - 1 - tl.gather(place0, winner, 1), 1)).to(tl.int64)
    chosen1 = _index_of(tl.gather(best1, K - 1 - tl.gather(place1, winner, 1), 1)).to(tl.int64)
    place = tl.arange(0, K)[None, :]
    row = tl.where(broken[:, None] != 0, place.to(tl.int64), chosen0 * n + chosen1)
    score = tl.where(broken[:, None] != 0, float("nan"), _score_of(winners))
    target = (token[:, None].to(tl.int64) * heads + head) * k + place
    exists = (token[:, None] < tokens) & (place < k)
    tl.store(rows + target, row, mask=exists)
    tl.store(out_scores + target, score, mask=exists)
