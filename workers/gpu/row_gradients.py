"""Gradients of rows of a table in GPU memory by entry, and their sums row by row.

Entries are sorted by row, those of one row in their order. Each row's are summed up in pieces from its first entry on, of
PIECE for a table (sub-keys' are longer: pooling.py): so a sum doesn't depend on where the row's entries lie among others', on
one device or on one of several, and a run repeats bit for bit (atomic additions would not). A row that text reads often has
thousands of entries in a step, far more than others. So all pieces but the first of a row are summed by programs of their
own before (`_piece_kernel`), and whoever needs the row's gradient sums the first and adds theirs (`sum_of_row`): of a row
with 10,000 entries 55 reads of ENTRIES vectors follow one another instead of 2500.

Floor of the sort, bytes over bandwidth, if it took one pass (torch's takes several):
    40 N      (rows, vector numbers and weights read and written)

Of as many entries from a multiple of a piece on, at most one begins a piece that is not its row's first. Its sum has that
multiple's place.
"""

# `tl` is a module only where kernels run; elsewhere "tl.constexpr" names nothing.
# pyright: reportInvalidTypeForm=false
from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from workers.gpu.compilation import kernel, kernel_for_any, kernels_run_on, power_of_two, tl

ENTRIES = 4  # of a row that are read at a time
PIECE = 64


class SortedGradients(NamedTuple):
    """The entries of RowGradients by row, and the sums of pieces, float32 `[ceil(N / piece), D]`, where there are some."""

    rows: Tensor
    vector_numbers: Tensor
    weights: Tensor
    vectors: Tensor
    piece_sums: Tensor


@dataclass(frozen=True)
class RowGradients:
    """Gradients by entry: row rows[e] gets weights[e] * vectors[vector_numbers[e]].

    rows, vector_numbers int64 `[N]`, weights float32 `[N]`, vectors float32 `[V, D]`. Entries whose row is not below
    `table_rows` are of rows that lie elsewhere, and are left out.
    """

    rows: Tensor
    vector_numbers: Tensor
    weights: Tensor
    vectors: Tensor
    table_rows: int

    @cached_property
    def by_row(self) -> SortedGradients:
        """What kernels read for which entries are many to a table and few to a row; made once."""
        return self.sorted_by_row(PIECE, ENTRIES, warps_for(self.vectors.shape[1]))

    def sorted_by_row(self, piece: int, at_once: int, warps: int) -> SortedGradients:
        """At least one entry, with sums of pieces of `piece`, of which `warps` read `at_once` at a time.

        Where kernels don't run, no piece is summed.
        """
        rows, order = self.rows.sort(stable=True)
        weights, vectors = self.weights[order], self.vectors.contiguous()
        entries, dim = rows.numel(), vectors.shape[1]
        pieces = -(-entries // piece)
        first = torch.searchsorted(rows, rows[::piece].contiguous())
        by_row = SortedGradients(
            rows, self.vector_numbers[order], weights, vectors, torch.empty(pieces, dim, device=rows.device)
        )
        if kernels_run_on(rows.device):
            _piece_kernel[(pieces,)](
                *by_row, first, entries, self.table_rows, dim,
                P=piece, E=at_once, C=power_of_two(dim), num_warps=warps,
            )  # fmt: skip
        return by_row

    def summed(self) -> tuple[Tensor, Tensor]:
        """In torch operations: the distinct rows of the table, ascending, and their gradients `[U, D]`."""
        here = self.rows < self.table_rows
        rows, group = torch.unique(self.rows[here], return_inverse=True)
        contributions = self.weights[here, None] * self.vectors[self.vector_numbers[here]]
        summed = self.vectors.new_zeros(rows.numel(), self.vectors.shape[1])
        return rows, summed.index_add_(0, group, contributions)


def sort_floor_bytes(entries: int) -> int:
    """Bytes that a sort of entries by row must move; see the module."""
    return 40 * entries


def warps_for(dim: int) -> int:
    """Of a program with rows of `dim` numbers, 8 of them a thread's."""
    return min(32, max(1, power_of_two(dim) // 256))


@kernel
def _sum_of_entries(  # type: ignore[no-untyped-def]  # Triton's language has no types to give
    begin, end, row, by_row, vector_numbers, weights, vectors, dim, E: tl.constexpr, C: tl.constexpr
):
    """The gradient of the entries of `row` from `begin`, which is one, to `end`: `[C]`."""
    column = tl.arange(0, C)
    total = tl.zeros((E, C), tl.float32)
    this = row
    while this == row:
        entry = begin + tl.arange(0, E)
        same = tl.load(by_row + entry, mask=entry < end, other=-1) == row
        number = tl.load(vector_numbers + entry, mask=same, other=0)
        weight = tl.load(weights + entry, mask=same, other=0.0)
        inside = same[:, None] & (column < dim)[None, :]
        vector = tl.load(vectors + number[:, None] * dim + column[None, :], mask=inside, other=0.0)
        total += weight[:, None] * vector
        begin += E
        this = tl.load(by_row + begin, mask=begin < end, other=-1)
    return tl.sum(total, axis=0)


@kernel
def sum_of_row(  # type: ignore[no-untyped-def]
    begin, row, by_row, vector_numbers, weights, vectors, piece_sums, entries, dim,
    P: tl.constexpr, E: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """The gradient of `row`, whose first entry is `begin`: `[C]`."""
    end = tl.minimum(begin + P, entries)
    first = _sum_of_entries(begin, end, row, by_row, vector_numbers, weights, vectors, dim, E, C)
    column = tl.arange(0, C)
    others = tl.zeros((E, C), tl.float32)
    piece = begin + P
    this = tl.load(by_row + piece, mask=piece < entries, other=-1)
    while this == row:
        begins = piece + P * tl.arange(0, E)
        same = tl.load(by_row + begins, mask=begins < entries, other=-1) == row
        inside = same[:, None] & (column < dim)[None, :]
        sums = tl.load(piece_sums + (begins // P)[:, None] * dim + column[None, :], mask=inside, other=0.0)
        others += sums
        piece += P * E
        this = tl.load(by_row + piece, mask=piece < entries, other=-1)
    return first + tl.sum(others, axis=0)


@kernel_for_any("entries")
def _piece_kernel(  # type: ignore[no-untyped-def]
    by_row, vector_numbers, weights, vectors, piece_sums, first_of_row, entries, table_rows, dim,
    P: tl.constexpr, E: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64)
    row = tl.load(by_row + place * P)
    first = tl.load(first_of_row + place)
    begin = first + tl.cdiv(place * P - first, P) * P
    continues = tl.load(by_row + begin, mask=begin < entries, other=-1) == row
    if (begin > first) & continues & (row < table_rows):
        end = tl.minimum(begin + P, entries)
        total = _sum_of_entries(begin, end, row, by_row, vector_numbers, weights, vectors, dim, E, C)
        column = tl.arange(0, C)
        tl.store(piece_sums + place * dim + column, total, mask=column < dim)
