"""The memory layer as it is written in plain PyTorch, with its table as a parameter of the model.

Selection by two top-k and all pairs, rows summed by an embedding bag. The query network, the sub-keys and the
first values are those of our layer; what it computes is equal.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.plain_selection import select_plainly
from memory_store.calls import Waiting
from workers.memory_layer import MemoryLayer


class PlainMemory(nn.Module):
    """Takes the place of a MemoryLayer without gate; `values` `[K, D]` becomes a parameter."""

    def __init__(self, layer: MemoryLayer, values: Tensor, *, sparse: bool) -> None:
        super().__init__()
        self.query_network, self.product_keys, self.k = layer.query_network, layer.product_keys, layer.k
        self.values, self.sparse = nn.Parameter(values), sparse

    def begin(self, x: Tensor, mask: Tensor | None = None) -> Waiting[Tensor]:
        """x `[..., dim]` -> `[..., dim]`, at once; padding is not spared, so there must be none."""
        assert mask is None
        queries = self.query_network(x.flatten(0, -2))
        rows, scores = select_plainly(queries, self.product_keys.sub_keys, self.k)
        weights = torch.softmax(scores, dim=-1)
        recalled = F.embedding_bag(
            rows.flatten(1),
            self.values,
            per_sample_weights=weights.flatten(1),
            mode="sum",
            sparse=self.sparse,
        )
        return lambda: recalled.view_as(x)
