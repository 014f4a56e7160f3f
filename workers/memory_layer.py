"""The product-key memory as a layer: query network, exact selection, weighted sum of rows of a value table.

    y(x) = sum over heads of  sum over the head's k best rows of  softmax(scores) * value[row]

(Lample et al. 2019); with `gate`, (y * silu(x W1)) W2 (Memory+, Berges et al. 2024). The table lives in a
store, not in the layer: it is no parameter, it is not in the state_dict, and several layers may read the
same one. Padding is taken out at the entrance, so nothing behind it - statistics, lookups, access counts,
gradients - ever sees it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memory_store.calls import Waiting
from memory_store.errors import UsageError
from memory_store.table_handle import TableHandle
from workers.initialization import seeded_linear
from workers.lookup import begin_lookup
from workers.product_keys import ProductKeys
from workers.query_network import QueryNetwork, QueryNetworkKind, QueryNorm

Ablation = Literal["none", "zero", "shuffle"]


class MemoryLayer(nn.Module):
    """A memory over `table`, which must have `sub_keys ** 2` rows of width `dim`; usable in any model.

    After the backward pass the gradients of the rows are in the store: call `store.step` beside
    `optimizer.step`. `seed` decides the first weights and must differ between the layers of a model.

    `track_access` counts accesses at the shards (for evaluation); `on_select` is told, while the layer trains, which rows
    it selects, int64 `[T, heads, k]`. `ablation` shows whether the memory
    matters: "zero" puts its output to zero, "shuffle" reads other rows than were selected, the same ones
    every time.
    """

    def __init__(
        self,
        dim: int,
        table: TableHandle,
        *,
        sub_keys: int,
        heads: int = 4,
        k: int = 32,
        query_dim: int = 256,
        query_network: QueryNetworkKind = "linear",
        query_norm: QueryNorm = "batch",
        gate: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if table.dim != dim:
            raise UsageError(
                f"Table {table.name!r} has rows of width {table.dim} and the layer's dim is {dim}; "
                "make them equal."
            )
        if table.rows != sub_keys**2:
            raise UsageError(
                f"Table {table.name!r} has {table.rows} rows and {sub_keys} sub-keys address {sub_keys**2}; "
                "make them equal."
            )
        if not 1 <= k <= sub_keys:
            raise UsageError(
                f"A head can't select {k} rows with {sub_keys} sub-keys; use k from 1 to {sub_keys}."
            )
        if query_dim % 2:
            raise UsageError(
                f"query_dim {query_dim} is odd; each half meets its own sub-keys, so use an even number."
            )
        self.table, self.k = table, k
        self.track_access = False
        self.on_select: Callable[[Tensor], None] | None = None
        self.ablation: Ablation = "none"
        generator = torch.Generator().manual_seed(seed)
        self.query_network = QueryNetwork(dim, heads, query_dim, query_network, query_norm, generator)
        self.product_keys = ProductKeys(heads, sub_keys, query_dim, generator)
        self.gate = OutputGate(dim, generator) if gate else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x `[..., dim]`, mask bool `[...]` (True: a real token; None: all are) -> `[..., dim]`, zero at
        padding."""
        return self.begin(x, mask)()

    def begin(self, x: Tensor, mask: Tensor | None = None) -> Waiting[Tensor]:
        """`forward`, begun: the rows are chosen and asked for, and what comes back waits for the output."""
        tokens = x.reshape(-1, x.shape[-1])
        if mask is None:
            recalled = self._begin(tokens)
            return lambda: recalled().reshape(x.shape)
        real = mask.reshape(-1).nonzero().squeeze(1)
        recalled = self._begin(tokens[real])
        return lambda: torch.zeros_like(tokens).index_copy(0, real, recalled()).reshape(x.shape)

    def _begin(self, tokens: Tensor) -> Waiting[Tensor]:
        """`begin` for tokens `[T, dim]` that are all real."""
        if self.ablation == "zero":
            return lambda: torch.zeros_like(tokens)
        rows, scores = self.product_keys.select(self.query_network(tokens), self.k)
        if self.on_select is not None and self.training:
            self.on_select(rows)
        if self.ablation == "shuffle":
            rows = _permuted(rows, self.table.rows)
        weights = scores.softmax(-1)
        sums = begin_lookup(self.table, rows.flatten(1), weights.flatten(1), track=self.track_access)

        def finish() -> Tensor:
            recalled = sums().to(tokens.dtype)
            return recalled if self.gate is None else self.gate(recalled, tokens)

        return finish


class OutputGate(nn.Module):
    """(y * silu(x W1)) W2 with W1, W2 `[dim, dim]`."""

    def __init__(self, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.gate = seeded_linear(dim, dim, generator)
        self.output = seeded_linear(dim, dim, generator)

    def forward(self, recalled: Tensor, tokens: Tensor) -> Tensor:
        gated: Tensor = self.output(recalled * F.silu(self.gate(tokens)))
        return gated


def _permuted(rows: Tensor, count: int) -> Tensor:
    """A fixed permutation of 0 .. count - 1, applied to `rows`: multiplication by a number prime to
    `count`."""
    factor = max(1, round(min(count, 1 << 30) * 0.618))
    while math.gcd(factor, count) > 1:
        factor += 1
    return (rows * factor + 1) % count
