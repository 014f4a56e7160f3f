"""The product-key memory as a layer: query network, exact selection, weighted sum of rows of a value table.

    y(x) = sum over heads of  sum over the head's k best rows of  softmax(scores) * value[row]

(Lample et al. 2019). Options are parts of its successors:

- `gate`: (y * silu(x W1)) W2 (Memory+, Berges et al. 2024); `qk_norm`: see `product_keys.normalised` (the same).
- `weights="scores"`: scores / k in the place of softmax(scores) (UltraMem, Huang et al. 2024, which leaves the softmax
  out; the constant k lets the values keep their size and learning rate).
- `value_dim`: values of another width, and y W with one matrix (UltraMem: half the width).
- `slots="experts"` (PEER, He 2024) and `value_expansion` (UltraMem): see slots.py.

The table lives in a store, not in the layer: it is no parameter, it is not in the state_dict, and several layers may
read the same one (Memory+). Padding is taken out at the entrance, so nothing behind it - statistics, lookups, access
counts, gradients - ever sees it.
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
from workers.flat_keys import FlatKeys
from workers.initialization import seeded_linear
from workers.lookup import begin_lookup
from workers.product_keys import ProductKeys, Selection
from workers.query_network import QueryNetwork, QueryNetworkKind, QueryNorm
from workers.slots import ExpandedValues, Experts, SlotKind, Values

KeyKind = Literal["product", "flat"]
WeightKind = Literal["softmax", "scores"]
Ablation = Literal["none", "zero", "shuffle"]


class MemoryLayer(nn.Module):
    """A memory over `table`, usable in any model.

    The table must have `sub_keys ** 2 / value_expansion` rows, of width `value_dim` (by default `dim`) or, for experts,
    `2 * dim`.

    After the backward pass the gradients of the rows are in the store: call `store.step` beside
    `optimizer.step`. `seed` decides the first weights and must differ between the layers of a model.

    `count_uses` counts which sub-keys are selected in training (see revival.py).
    `choose_learning`, given the rows int64 `[T, M]` of a batch, says which of them, at least one, learn, bool `[T, M]`
    (learning_rows.py).
    `track_access` counts accesses at the shards (for evaluation); `on_select` is told, while the layer trains, which keys
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
        keys: KeyKind = "product",
        qk_norm: bool = False,
        weights: WeightKind = "softmax",
        slots: SlotKind = "values",
        value_dim: int | None = None,
        value_expansion: int = 1,
        count_uses: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        width = 2 * dim if slots == "experts" else value_dim or dim
        if table.dim != width:
            raise UsageError(
                f"Table {table.name!r} has rows of width {table.dim} and the layer's dim is {dim}, "
                f"for which they must be {width} wide; make them fit."
            )
        if table.rows * value_expansion != sub_keys**2:
            raise UsageError(
                f"Table {table.name!r} has {table.rows} rows and {sub_keys} sub-keys address {sub_keys**2}, "
                f"{value_expansion} of them each; make them equal."
            )
        if not 1 <= k <= sub_keys:
            raise UsageError(
                f"A head can't select {k} rows with {sub_keys} sub-keys; use k from 1 to {sub_keys}."
            )
        if query_dim % 2:
            raise UsageError(
                f"query_dim {query_dim} is odd; each half meets its own sub-keys, so use an even number."
            )
        self.table, self.k, self.weights, self.value_expansion = table, k, weights, value_expansion
        self.track_access, self.count_uses = False, count_uses
        self.choose_learning: Callable[[Tensor], Tensor] | None = None
        self.on_select: Callable[[Tensor], None] | None = None
        self.ablation: Ablation = "none"
        generator = torch.Generator().manual_seed(seed)
        self.query_network = QueryNetwork(dim, heads, query_dim, query_network, query_norm, generator)
        self.product_keys: ProductKeys | None = None
        self.flat_keys: FlatKeys | None = None
        if keys == "flat":
            self.flat_keys = FlatKeys(heads, sub_keys**2, query_dim, generator, normalise=qk_norm)
        else:
            self.product_keys = ProductKeys(
                heads, sub_keys, query_dim, generator, normalise=qk_norm, count_uses=count_uses
            )
        self.slots: Values | ExpandedValues | Experts
        if value_expansion > 1:
            self.slots = ExpandedValues(value_expansion, width, generator)
        else:
            self.slots = Experts() if slots == "experts" else Values()
        self.gate = OutputGate(dim, value_dim or dim, generator) if gate else None
        self.projection = None
        if value_dim is not None and not gate:
            self.projection = seeded_linear(value_dim, dim, generator)

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
        keys, scores = self.select(self.query_network(tokens))
        if self.count_uses and self.training and self.product_keys is not None:
            self.product_keys.count(keys)
        if self.on_select is not None and (self.training or self.choose_learning is not None):
            self.on_select(keys)
        if self.ablation == "shuffle":
            keys = _permuted(keys, self.table.rows * self.value_expansion)
        weights = (scores.softmax(-1) if self.weights == "softmax" else scores / self.k).flatten(1)
        keys = keys.flatten(1)
        track = self.track_access
        if track and (self.weights == "scores" or isinstance(self.slots, Experts)):
            self._count(keys, weights)
            track = False
        learning = self.choose_learning and self.choose_learning(keys % self.table.rows)
        answer = self.slots.begin(self.table, tokens, keys, weights, track=track, learning=learning)

        def finish() -> Tensor:
            recalled = answer().to(tokens.dtype)
            if self.gate is not None:
                recalled = self.gate(recalled, tokens)
            elif self.projection is not None:
                recalled = self.projection(recalled)
            return recalled

        return finish

    def select(self, queries: Tensor) -> Selection:
        """The k best keys of every head for queries `[T, H, query_dim]`."""
        if self.flat_keys is not None:
            return self.flat_keys.select(queries, self.k)
        assert self.product_keys is not None
        return self.product_keys.select(queries, self.k)

    def _count(self, keys: Tensor, weights: Tensor) -> None:
        """Count accesses by the size of their weights, where the lookup itself has others or some below 0."""
        with torch.no_grad():
            begin_lookup(self.table, keys % self.table.rows, weights.abs(), track=True)()


class OutputGate(nn.Module):
    """(y * silu(x W1)) W2 with W1 `[value_dim, dim]` and W2 `[dim, value_dim]`."""

    def __init__(self, dim: int, value_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.gate = seeded_linear(dim, value_dim, generator)
        self.output = seeded_linear(value_dim, dim, generator)

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
