"""From the residual stream to queries: a linear layer or a small network, then normalisation over all
heads' features.

Batch norm of the queries spreads the use of a large table (Lample et al. 2019, table 4: 80 % of 2**20 rows
used instead of 26 %). Layer norm does not look at other tokens. Queries come out in float32 at least, also
under autocast, as the selection compares them exactly.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from workers.initialization import seeded_linear
from workers.synchronised_batch_norm import SynchronisedBatchNorm

QueryNetworkKind = Literal["linear", "mlp"]
QueryNorm = Literal["batch", "layer", "none"]


class QueryNetwork(nn.Module):
    """Tokens `[T, dim]` -> queries `[T, H, query_dim]`. The network "mlp" has one hidden layer of width
    dim, with ReLU."""

    def __init__(
        self,
        dim: int,
        heads: int,
        query_dim: int,
        kind: QueryNetworkKind,
        norm: QueryNorm,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.heads, self.query_dim = heads, query_dim
        features = heads * query_dim
        hidden = [seeded_linear(dim, dim, generator, bias=True), nn.ReLU()] if kind == "mlp" else []
        self.network = nn.Sequential(*hidden, seeded_linear(dim, features, generator, bias=True))
        norms = {"batch": SynchronisedBatchNorm, "layer": nn.LayerNorm, "none": nn.Identity}
        self.norm = norms[norm](features)

    def forward(self, x: Tensor) -> Tensor:
        queries: Tensor = self.network(x)
        queries = queries.to(torch.promote_types(queries.dtype, torch.float32))
        normal: Tensor = self.norm(queries)
        return normal.reshape(x.shape[0], self.heads, self.query_dim)
