"""Exact top-k of product keys without writing all scores.

best_of_halves.py finds the k best sub-keys of both halves. Of the pairs of the two sorted halves only those with
(i+1)(j+1) <= k can win, and the k best of these are written. Those with either half's best are sorted already, and only
merged; the others are sorted, K at a time, and merged into these. Ties are resolved as workers/selection_kernels.py does: of
equal sums the lower i, then the lower j comes first. A query with a NaN among its scores, or among the sums of these pairs,
gets k scores NaN. With C > COLUMNS_MAX or k > K_MAX torch operations select, which write all scores.

The gradient needs no product of matrices: a query's is a weighted sum of k sub-keys, and a sub-key's a weighted sum of the
queries that chose it, which are the kernels of pooling.py with the sub-keys as the table.

Floor. Bytes: queries and sub-keys read once, rows (8) and scores (4) written once,
    4 T H 2C + 4 H 2 n C + 12 T H k,
over the bandwidth; and 4 T H n C operations in float32 over their rate, which is the larger of the two for any n that
matters. Tensor cores make the products here, four in TensorFloat-32 for each in float32: over the rate of those (an H100:
7 times that of float32, by the data sheet) they take about 0.55 of that floor. Sorting comes besides.
Letters: T tokens, H heads, n sub-keys, k selected, C = query_dim / 2.
"""

# `tl` is a module only where kernels run; elsewhere "tl.constexpr" names nothing.
# pyright: reportInvalidTypeForm=false
from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from workers.gpu.best_of_halves import COLUMNS_MAX, K_MAX, TOKENS, WARPS, best_of_halves
from workers.gpu.compilation import kernel_for_any, kernels_run_on, tl
from workers.gpu.packed_scores import (
    LEAST,
    best_of_both,
    by_query,
    for_four_threads,
    index_of,
    merged,
    packed,
    score_of,
)
from workers.gpu.pooling import pool, sum_by_row


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
    broken = (scores.isnan().any(dim=-1).any(dim=0) | sums.isnan().any(dim=-1))[..., None]
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
        find_room = k <= K_MAX and queries.shape[-1] <= COLUMNS_MAX
        if find_room and kernels_run_on(queries.device):
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
    tokens, heads, _, _ = queries.shape
    rows = torch.empty(tokens, heads, k, dtype=torch.int64, device=queries.device)
    scores = torch.empty(tokens, heads, k, device=queries.device)
    if tokens:
        best, indices = best_of_halves(queries, sub_keys, k)
        k_padded = best.shape[2]
        inner = _inner_pairs(k, k_padded, queries.device)
        _pairs_kernel[(-(-tokens // TOKENS), heads)](
            best, indices, inner, rows, scores, tokens, heads, sub_keys.shape[2], k, inner.numel(),
            T=TOKENS, K=k_padded, num_warps=WARPS,
        )  # fmt: skip
    return rows, scores


@lru_cache
def _inner_pairs(k: int, stride: int, device: torch.device) -> Tensor:
    """i * stride + j of the pairs (i, j) that can win and have neither half's best: int32."""
    pairs = [i * stride + j for i in range(1, k) for j in range(1, k // (i + 1))]
    return torch.tensor(pairs, dtype=torch.int32, device=device)


@kernel_for_any("tokens")
def _pairs_kernel(  # type: ignore[no-untyped-def]  # Triton's language has no types to give
    best, indices, inner_pairs, rows, out_scores, tokens, heads, n, k, inner_count,
    T: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """See the module. Neighbouring threads read scores of neighbouring queries. Pair (i, j) has the number i * K + j."""
    head = tl.program_id(1)
    blocks = tl.cdiv(tokens, T)
    block0 = ((2 * head).to(tl.int64) * blocks + tl.program_id(0)) * (K * T)
    block1 = block0 + blocks.to(tl.int64) * (K * T)
    best0, best1 = best + block0, best + block1

    # With the first half's best the best comes first, with the second half's last.
    place, query = for_four_threads(T, K)
    sums = tl.load(best0 + query) + tl.load(best1 + (place * T + query))
    falling = by_query(tl.where(place < k, packed(sums, place), LEAST), T, K)
    backwards = K - place
    exists = backwards < k
    sums = tl.load(best0 + (backwards * T + query), mask=exists, other=0.0) + tl.load(best1 + query)
    rising = by_query(tl.where(exists, packed(sums, backwards * K), LEAST), T, K)
    winners = best_of_both(falling, rising)
    for begin in range(0, inner_count, K):
        exists = begin + place < inner_count
        pair = tl.load(inner_pairs + begin + place, mask=exists, other=0)
        sums = tl.load(best0 + ((pair // K).to(tl.int64) * T + query))
        sums += tl.load(best1 + ((pair % K).to(tl.int64) * T + query))
        winners = merged(winners, by_query(tl.where(exists, packed(sums, pair), LEAST), T, K))

    score = score_of(winners)
    place, query = tl.arange(0, K)[None, :], tl.arange(0, T)[:, None]
    broken = tl.max(((score != score) & (place == 0)).to(tl.int32), axis=1)[:, None] != 0  # NaN is before all
    token = tl.program_id(0) * T + query
    exists = (token < tokens) & (place < k)
    pair = tl.maximum(index_of(winners), 0)
    row = tl.load(indices + block0 + ((pair // K).to(tl.int64) * T + query)).to(tl.int64) * n
    row += tl.load(indices + block1 + ((pair % K).to(tl.int64) * T + query))
    target = (token.to(tl.int64) * heads + head) * k + place
    tl.store(rows + target, tl.where(broken, place.to(tl.int64), row), mask=exists)
    tl.store(out_scores + target, tl.where(broken, float("nan"), score), mask=exists)
