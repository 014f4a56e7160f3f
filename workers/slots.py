"""What a slot of the table holds, and what a layer makes of the slots that a token has chosen.

All read entries: numbers of keys int64 `[T, M]` and weights `[T, M]`, M = heads * k for each of T tokens.

*Values* (Lample et al. 2019): the weighted sum of the rows, made by the shards.

    y = sum_m  w_m v[row_m]

*Expanded values* (UltraMem, Huang et al. 2024, implicit value expansion): E times as many keys as the K rows. Key r
reads row r mod K through the matrix P_e of its block, e = r div K. (The paper scatters the keys over the rows.)

    y = sum_m  w_m P_e(m) v[row_m]

*Experts* (PEER, He 2024): a row is an expert of one neuron, u beside v, and the token x is put to it.

    y = sum_m  w_m gelu(u[row_m] . x) v[row_m]

The last two need every entry's own row, so that the distinct rows of a batch travel instead of sums.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memory_store.calls import Waiting
from memory_store.table_handle import TableHandle
from workers.lookup import begin_lookup

SlotKind = Literal["values", "experts"]


class Values(nn.Module):
    """Weighted sums of rows `[T, D]`."""

    def begin(
        self,
        table: TableHandle,
        tokens: Tensor,
        keys: Tensor,
        weights: Tensor,
        *,
        track: bool,
        learning: Tensor | None,
    ) -> Waiting[Tensor]:
        """Ask for the rows; what comes back waits for the result. `track` and `learning` as of begin_lookup."""
        return begin_lookup(table, keys, weights, track=track, learning=learning)


class ExpandedValues(nn.Module):
    """Weighted sums of rows, each through the matrix of its block: `[T, D]`; the matrices are `[E, D, D]`."""

    def __init__(self, expansion: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        start = torch.empty(expansion, width, width).normal_(std=width**-0.5, generator=generator)
        self.matrices = nn.Parameter(start)

    def begin(
        self,
        table: TableHandle,
        tokens: Tensor,
        keys: Tensor,
        weights: Tensor,
        *,
        track: bool,
        learning: Tensor | None,
    ) -> Waiting[Tensor]:
        """As `Values.begin`."""
        blocks = F.one_hot(keys // table.rows, len(self.matrices))  # [T, M, E]
        weighted_rows = begin_lookup_of_each(table, keys % table.rows, weights, track, learning)

        def finish() -> Tensor:
            rows = weighted_rows()
            with torch.autocast(rows.device.type, enabled=False):
                sums = blocks.to(rows.dtype).mT @ rows  # [T, E, D]
            return torch.einsum("ted,ecd->tc", sums, self.matrices)

        return finish


class Experts(nn.Module):
    """Sums of weighted experts `[T, D / 2]`, for tokens `[T, D / 2]`."""

    def begin(
        self,
        table: TableHandle,
        tokens: Tensor,
        keys: Tensor,
        weights: Tensor,
        *,
        track: bool,
        learning: Tensor | None,
    ) -> Waiting[Tensor]:
        """As `Values.begin`, but for `track`: the rows are weighted here, after their neurons, and asked for unweighted."""
        asked = begin_lookup_of_each(table, keys, torch.ones_like(weights), track, learning)

        def finish() -> Tensor:
            inward, outward = asked().chunk(2, dim=-1)  # [T, M, D / 2] each
            with torch.autocast(inward.device.type, enabled=False):
                neurons = F.gelu(torch.einsum("tmd,td->tm", inward, tokens.to(inward.dtype)))
                return torch.einsum("tm,tmd->td", weights * neurons, outward)

        return finish


def begin_lookup_of_each(
    table: TableHandle, rows: Tensor, weights: Tensor, track: bool, learning: Tensor | None
) -> Waiting[Tensor]:
    """Ask for every entry's own row, times its weight: `[T, M, D]`."""
    learns = None if learning is None else learning.reshape(-1, 1)
    asked = begin_lookup(table, rows.reshape(-1, 1), weights.reshape(-1, 1), track=track, learning=learns)
    return lambda: asked().reshape(*rows.shape, table.dim)
