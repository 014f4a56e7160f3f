"""Weighted sums of rows of a table in GPU memory, and both gradients of them.

A *bag* is what one token reads: M row numbers and M weights. Forward, one program makes one bag's sum, column block by
column block; backward, one makes the M products of a bag's rows with its output gradient. A row's gradient is the sum over
its entries of weight * output gradient of the bag; entries are sorted by row and summed in pieces (row_gradients.py).

A program of the first two is one warp, whose threads wait for no others, and reads TILE numbers of several rows at a time:
128 bytes a thread in float32. The registers of a multiprocessor suffice for 20 such warps and more: 80 KiB under way, where
bandwidth times latency asks for about 20 (an H100: 3.3 TB/s over 132 multiprocessors, 0.8 us). Sub-keys have hundreds of
entries each: a piece is of ROW_PIECE, summed by ROW_WARPS warps together.

Sums are float32 under autocast too. On the CPU the kernels of the shards pool, so that sums there are theirs, bit for bit.

Rows are float32, or bfloat16 (sums are float32). Row numbers are not checked: who calls must have chosen existing ones.

Floor, bytes over bandwidth, with b bytes of a stored number, every entry reading its row (no cache):
    pool              N D b + 12 N + 4 T D
    weight_gradient   N D b + 12 N + 4 T D
    sum_by_row        4 N D + 16 N + 4 K D   (the sort comes besides: row_gradients.py)
Letters: T bags, M entries of a bag, N = T M, K rows, D columns.
"""

# `tl` is a module only where kernels run; elsewhere "tl.constexpr" names nothing.
# pyright: reportInvalidTypeForm=false
from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memory_store.kernels import pool_rows, weight_gradients
from workers.gpu.compilation import kernel, kernel_for_any, kernels_run_on, power_of_two, tl
from workers.gpu.row_gradients import RowGradients, sum_of_row

COLUMNS_MAX, ENTRIES_MAX = 1024, 32  # of a program at a time
TILE = 1024  # numbers that a warp reads at a time
ROW_WARPS, ROW_PIECE = 4, 512


def pooling_floor_bytes(bags: int, per_bag: int, dim: int, item_bytes: int = 4) -> int:
    """Bytes that `pool` or `weight_gradient` must move."""
    entries = bags * per_bag
    return entries * (dim * item_bytes + 12) + 4 * bags * dim


def sum_floor_bytes(rows: int, entries: int, dim: int) -> int:
    """Bytes that `sum_by_row` must move besides its sort."""
    return 4 * entries * dim + 16 * entries + 4 * rows * dim


def pool(values: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """`[T, D]` float32: sum over m of weights[t, m] * values[rows[t, m]]; values `[K, D]`, rows int64, both `[T, M]`."""
    if not kernels_run_on(values.device):
        on_cpu = values.device.type == "cpu"
        return (_pooled_on_cpu if on_cpu else pool_reference)(values, rows, weights)
    (bags, per_bag), dim = rows.shape, values.shape[1]
    out = torch.empty(bags, dim, device=values.device)
    if out.numel():
        entries, columns = _tile(per_bag, dim, TILE)
        _pool_kernel[(bags, -(-dim // columns))](
            values, rows.contiguous(), weights.contiguous(), out, per_bag, dim,
            E=entries, C=columns, num_warps=1,
        )  # fmt: skip
    return out


def pool_reference(values: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """`pool` in torch operations; float64 for float64 values."""
    dtype = torch.promote_types(values.dtype, torch.float32)
    with torch.autocast(values.device.type, enabled=False):
        return torch.einsum("tm,tmd->td", weights.to(dtype), values[rows].to(dtype))


def weight_gradient(values: Tensor, rows: Tensor, output_gradient: Tensor) -> Tensor:
    """`[T, M]` float32: <values[rows[t, m]], output_gradient[t]>."""
    if not kernels_run_on(values.device):
        on_cpu = values.device.type == "cpu"
        return (_weight_gradient_on_cpu if on_cpu else weight_gradient_reference)(
            values, rows, output_gradient
        )
    (bags, per_bag), dim = rows.shape, values.shape[1]
    out = torch.empty(bags, per_bag, device=values.device)
    if out.numel():
        entries, columns = _tile(per_bag, dim, TILE)
        _weight_gradient_kernel[(bags,)](
            values, rows.contiguous(), output_gradient.contiguous(), out, per_bag, dim,
            E=entries, C=columns, num_warps=1,
        )  # fmt: skip
    return out


def weight_gradient_reference(values: Tensor, rows: Tensor, output_gradient: Tensor) -> Tensor:
    """`weight_gradient` in torch operations."""
    dtype = torch.promote_types(values.dtype, torch.float32)
    with torch.autocast(values.device.type, enabled=False):
        return torch.einsum("tmd,td->tm", values[rows].to(dtype), output_gradient.to(dtype))


def _pooled_on_cpu(values: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    dtype = torch.promote_types(values.dtype, torch.float32)
    out = torch.empty(rows.shape[0], values.shape[1], dtype=dtype)
    pool_rows(_stored(values), 0, *_bags(rows), weights.to(dtype).flatten().numpy(), out.numpy())
    return out


def _weight_gradient_on_cpu(values: Tensor, rows: Tensor, output_gradient: Tensor) -> Tensor:
    dtype = torch.promote_types(values.dtype, torch.float32)
    out = torch.empty(rows.shape, dtype=dtype)
    gradient = output_gradient.to(dtype).contiguous().numpy()
    weight_gradients(_stored(values), 0, *_bags(rows), gradient, out.view(-1).numpy())
    return out


def _stored(values: Tensor) -> NDArray[Any]:
    """The values as shards store them."""
    return (values.view(torch.uint16) if values.dtype == torch.bfloat16 else values).numpy()


def _bags(rows: Tensor) -> tuple[NDArray[np.int32], NDArray[np.uint32]]:
    """Where each bag's entries begin, int32 `[T + 1]`, and the rows of all entries, uint32 `[N]`."""
    bags, per_bag = rows.shape
    offsets = np.arange(bags + 1, dtype=np.int32) * np.int32(per_bag)
    return offsets, rows.flatten().numpy().astype(np.uint32)


def sum_by_row(count: int, rows: Tensor, weights: Tensor, vectors: Tensor) -> Tensor:
    """The gradient of a table of `count` rows, float32 `[count, D]`: for small tables, as the sub-keys are.

    rows int64 and weights `[T, M]`, vectors `[T, D]`: row r gets the sum of weights[t, m] * vectors[t] over its entries.
    """
    if not kernels_run_on(vectors.device):
        return sum_by_row_reference(count, rows, weights, vectors)
    dim, entries = vectors.shape[1], rows.numel()
    out = torch.zeros(count, dim, device=vectors.device)
    if entries and dim:
        bags = torch.arange(entries, device=rows.device) // rows.shape[1]
        gradients = RowGradients(rows.flatten(), bags, weights.flatten(), vectors, count)
        columns = power_of_two(dim)
        at_once = min(ENTRIES_MAX, max(1, ROW_WARPS * TILE // columns))
        by_row = gradients.sorted_by_row(ROW_PIECE, at_once, ROW_WARPS)
        begins = torch.searchsorted(by_row.rows, torch.arange(count, device=rows.device))
        _sum_kernel[(count,)](
            *by_row, begins, out, entries, dim, P=ROW_PIECE, E=at_once, C=columns, num_warps=ROW_WARPS
        )
    return out


def sum_by_row_reference(count: int, rows: Tensor, weights: Tensor, vectors: Tensor) -> Tensor:
    """`sum_by_row` in torch operations."""
    out = vectors.new_zeros(count, vectors.shape[1])
    contributions = weights.unsqueeze(-1) * vectors.unsqueeze(1)
    return out.index_add_(0, rows.flatten(), contributions.flatten(0, 1))


def _tile(entries: int, dim: int, numbers: int) -> tuple[int, int]:
    """Entries and columns, powers of two, that a program reads at a time: at most `numbers` together."""
    columns = min(COLUMNS_MAX, power_of_two(dim))
    return min(ENTRIES_MAX, power_of_two(entries), numbers // columns), columns


@kernel
def _rows_read(values, row, exists, column, dim):  # type: ignore[no-untyped-def]  # Triton's language has no types
    """float32 `[E, C]`: the columns of those rows that exist, and else 0."""
    inside = exists[:, None] & (column < dim)[None, :]
    return tl.load(values + row[:, None] * dim + column[None, :], mask=inside, other=0.0).to(tl.float32)


@kernel
def _pool_kernel(  # type: ignore[no-untyped-def]
    values, rows, weights, out, per_bag, dim, E: tl.constexpr, C: tl.constexpr
):
    bag = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * C + tl.arange(0, C)
    total = tl.zeros((E, C), tl.float32)
    for begin in range(0, per_bag, E):
        entry = begin + tl.arange(0, E)
        row = tl.load(rows + bag * per_bag + entry, mask=entry < per_bag, other=0)
        weight = tl.load(weights + bag * per_bag + entry, mask=entry < per_bag, other=0.0).to(tl.float32)
        total += weight[:, None] * _rows_read(values, row, entry < per_bag, column, dim)
    tl.store(out + bag * dim + column, tl.sum(total, axis=0), mask=column < dim)


@kernel
def _weight_gradient_kernel(  # type: ignore[no-untyped-def]
    values, rows, output_gradient, out, per_bag, dim, E: tl.constexpr, C: tl.constexpr
):
    bag = tl.program_id(0).to(tl.int64)
    for begin in range(0, per_bag, E):
        entry = begin + tl.arange(0, E)
        row = tl.load(rows + bag * per_bag + entry, mask=entry < per_bag, other=0)
        product = tl.zeros((E, C), tl.float32)
        for first in range(0, dim, C):
            column = first + tl.arange(0, C)
            gradient = tl.load(output_gradient + bag * dim + column, mask=column < dim, other=0.0)
            value = _rows_read(values, row, entry < per_bag, column, dim)
            product += value * gradient.to(tl.float32)[None, :]
        tl.store(out + bag * per_bag + entry, tl.sum(product, axis=1), mask=entry < per_bag)


@kernel_for_any("entries")
def _sum_kernel(  # type: ignore[no-untyped-def]
    by_row, bags, weights, vectors, piece_sums, begins, out, entries, dim,
    P: tl.constexpr, E: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    begin = tl.load(begins + row)
    if tl.load(by_row + begin, mask=begin < entries, other=-1) == row:
        total = sum_of_row(begin, row, by_row, bags, weights, vectors, piece_sums, entries, dim, P, E, C)
        column = tl.arange(0, C)
        tl.store(out + row * dim + column, total, mask=column < dim)
