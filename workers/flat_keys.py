"""Flat keys: one whole key for every slot, all of them scored for every query. What product keys are compared with.

The same search as product_keys.py, exact too, at the cost of K keys per head instead of 2 sqrt(K) sub-keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers.product_keys import Selection, normalised

TOKENS_AT_ONCE = 256  # tokens whose scores [tokens, H, K] are in memory at a time


class FlatKeys(nn.Module):
    """The keys `[H, K, query_dim]` of a memory layer, uniform in +-query_dim ** -0.5 at the start.

    With `normalise`, queries and keys are layer-normalised; see `product_keys.normalised`.
    """

    def __init__(
        self, heads: int, keys: int, query_dim: int, generator: torch.Generator, *, normalise: bool = False
    ) -> None:
        super().__init__()
        start = torch.empty(heads, keys, query_dim).uniform_(-1, 1, generator=generator)
        self.keys = nn.Parameter(start * query_dim**-0.5)
        self.scale = nn.Parameter(torch.ones(query_dim)) if normalise else None

    def select(self, queries: Tensor, k: int) -> Selection:
        """The k best keys for every query `[T, H, query_dim]`."""
        heads, count, _ = self.keys.shape
        with torch.autocast(queries.device.type, enabled=False):
            dtype = torch.promote_types(self.keys.dtype, torch.float32)
            queries, keys = queries.to(dtype), self.keys.to(dtype)
            if self.scale is not None:
                queries, keys = normalised(queries, keys, self.scale.to(dtype))
            with torch.no_grad():
                best = [
                    torch.einsum("thc,hnc->thn", part, keys).topk(k).indices
                    for part in torch.split(queries, TOKENS_AT_ONCE)
                ]
            rows = torch.cat(best)
            of_all_heads = rows + torch.arange(heads, device=rows.device)[:, None] * count
            chosen = F.embedding(of_all_heads, keys.flatten(0, 1))  # [T, H, k, query_dim]
            return Selection(rows, torch.einsum("thc,thkc->thk", queries, chosen))
