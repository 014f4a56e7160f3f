"""Product keys (Lample et al. 2019): exact top-k over n*n keys at the cost of a comparison with 2n sub-keys.

Key (i, j) is sub-key i of the first half beside sub-key j of the second, so its score is the sum of two
scores, and its best k lie among the pairs of the k best sub-keys of each half. Of those, with both sorted,
only the pairs with (i+1)(j+1) <= k can be among the k best: 119 of 1024 for k = 32.

The chosen row numbers carry no gradient; the chosen scores carry it to the queries and to the sub-keys.
Scores are float32 (float64 for float64 parameters) also under autocast: in bfloat16 most queries would tie
at the k-th score.

In float32 the fused kernels select: selection_kernels.py on the CPU, gpu/selection.py on a GPU. All else goes
through torch operations.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from workers.gpu import selection as gpu_selection
from workers.selection_kernels import select_pairs, selection_gradient

TOKENS_AT_ONCE = 256  # tokens whose scores [H, 2, tokens, n] are in memory at a time


class Selection(NamedTuple):
    """The k best keys of every head, best first: rows int64 `[T, H, k]` and their scores `[T, H, k]`."""

    rows: Tensor
    scores: Tensor


class ProductKeys(nn.Module):
    """The sub-keys `[H, 2, n, query_dim / 2]` of a memory layer: n for each half of each head's query.

    They start uniform in +-(query_dim / 2) ** -0.5, drawn from `generator`. With `normalise`, the halves of the queries
    and the sub-keys are layer-normalised (see `normalised`).
    With `count_uses`, `count` adds to `fresh_uses` int64 `[H, 2, n]`; revival.py makes use of it, and of `uses`.
    """

    uses: Tensor
    fresh_uses: Tensor

    def __init__(
        self,
        heads: int,
        sub_keys: int,
        query_dim: int,
        generator: torch.Generator,
        *,
        normalise: bool = False,
        count_uses: bool = False,
    ) -> None:
        super().__init__()
        width = query_dim // 2
        start = torch.empty(heads, 2, sub_keys, width).uniform_(-1, 1, generator=generator)
        self.sub_keys = nn.Parameter(start * width**-0.5)
        self.scale = nn.Parameter(torch.ones(width)) if normalise else None
        if count_uses:
            self.register_buffer("uses", torch.zeros(heads, 2, sub_keys, dtype=torch.int64))
            self.register_buffer("fresh_uses", torch.zeros_like(self.uses), persistent=False)

    def count(self, rows: Tensor) -> None:
        """Count the sub-keys of selected rows int64 `[T, H, k]`."""
        heads, _, n, _ = self.sub_keys.shape
        of_head = torch.arange(heads, device=rows.device)[:, None] * n
        for half, chosen in enumerate((rows // n, rows % n)):
            places = (chosen + of_head).flatten()
            # Not bincount, for whose size the host would wait for the device.
            counts = torch.zeros(heads * n, dtype=torch.int64, device=rows.device)
            self.fresh_uses[:, half] += counts.index_add_(0, places, torch.ones_like(places)).view(heads, n)

    def select(self, queries: Tensor, k: int) -> Selection:
        """The exact k best of the n*n keys for every query `[T, H, query_dim]`; k <= n."""
        tokens, heads, _ = queries.shape
        _, _, n, width = self.sub_keys.shape
        with torch.autocast(queries.device.type, enabled=False):
            dtype = torch.promote_types(self.sub_keys.dtype, torch.float32)
            sub_keys, halves = self.sub_keys.to(dtype), queries.to(dtype).reshape(tokens, heads, 2, width)
            if self.scale is not None:
                halves, sub_keys = normalised(halves, sub_keys, self.scale.to(dtype))
            if dtype == torch.float32 and queries.device.type == "cpu":
                return Selection(*_FusedSelection.apply(halves, sub_keys, k))  # type: ignore[no-untyped-call]
            if dtype == torch.float32 and queries.device.type == "cuda":
                return Selection(*gpu_selection.select(halves, sub_keys, k))
            scores = torch.einsum("thsc,hsnc->sthn", halves, sub_keys)
            with torch.no_grad():
                first, second = choose_pairs(scores, k)
            return Selection(first * n + second, scores[0].gather(-1, first) + scores[1].gather(-1, second))


def normalised(queries: Tensor, keys: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys `[..., C]` to compare with qk-norm (Memory+, Berges et al. 2024, after Chameleon).

    Their product is (g * LN(q)) . LN(k) / sqrt(C), LN being layer norm and g the one learned scale `[C]`.
    """
    width = queries.shape[-1]
    return F.layer_norm(queries, (width,), scale), F.layer_norm(keys, (width,)) * width**-0.5


def choose_pairs(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Sub-keys (i, j) of the k best pairs, int64 `[..., k]` each, best first; scores of the halves `[2,
    ..., n]`."""
    best, sub_keys = scores.topk(k)
    first, second = candidate_pairs(k, scores.device)
    winners = (best[0][..., first] + best[1][..., second]).topk(k).indices
    return sub_keys[0].gather(-1, first[winners]), sub_keys[1].gather(-1, second[winners])


@lru_cache
def candidate_pairs(k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Places (i, j) in the sorted halves of every pair with (i+1)(j+1) <= k: two int64 `[pairs]`."""
    places = torch.arange(1, k + 1, device=device)
    first, second = (torch.outer(places, places) <= k).nonzero(as_tuple=True)
    return first, second


class _FusedSelection(torch.autograd.Function):
    """Selection by the CPU kernels: queries `[T, H, 2, C]`, sub-keys `[H, 2, n, C]` -> rows and scores `[T,
    H, k]`."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, sub_keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
        queries = queries.contiguous()
        tokens, heads, _, _ = queries.shape
        n, keys = sub_keys.shape[2], sub_keys.flatten(0, 1).mT
        rows = torch.empty(tokens, heads, k, dtype=torch.int64)
        scores = torch.empty(tokens, heads, k)
        room = torch.empty(min(tokens, TOKENS_AT_ONCE) * 2 * heads * n)
        for begin in range(0, tokens, TOKENS_AT_ONCE):
            part = slice(begin, min(begin + TOKENS_AT_ONCE, tokens))
            count = part.stop - begin
            of_halves = room[: 2 * heads * count * n].view(2 * heads, count, n)
            torch.bmm(queries[part].flatten(1, 2).transpose(0, 1), keys, out=of_halves)
            select_pairs(of_halves.view(heads, 2, count, n).numpy(), rows[part].numpy(), scores[part].numpy())
        ctx.save_for_backward(queries, sub_keys, rows)
        ctx.mark_non_differentiable(rows)
        return rows, scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor, score_gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        queries, sub_keys, rows = ctx.saved_tensors
        query_gradient, sub_key_gradient = torch.empty_like(queries), torch.empty_like(sub_keys)
        selection_gradient(
            queries.numpy(),
            sub_keys.numpy(),
            rows.numpy(),
            score_gradient.contiguous().numpy(),
            query_gradient.numpy(),
            sub_key_gradient.numpy(),
        )
        return query_gradient, sub_key_gradient, None
