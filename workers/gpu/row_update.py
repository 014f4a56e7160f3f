"""One optimizer step of the rows of a table in GPU memory that have a gradient; the formulas of memory_store/optimizers.py.

A program looks at AT_ONCE entries of those sorted by row (row_gradients.py). Where a row begins it sums the row's gradient,
and updates values, state and `last_step`; so nobody has to know how many rows there are, and nothing waits for the GPU.
bfloat16 values are rounded stochastically with the random bits of memory_store/value_types.py. `scale` multiplies the
gradients and lies on the device, so that clipping needs no wait either.

A thread has 8 columns of a row, and reads those of ENTRIES vectors at a time, 128 bytes: as in pooling.py.

Floor, bytes over bandwidth, for N entries of U different rows, b bytes of a value, w numbers of state a row:
    4 N D + 24 N + U (2 b D + 8 w + 4)      (the sort comes besides: row_gradients.py)
"""

# `tl` is a module only where kernels run; elsewhere "tl.constexpr" names nothing.
# pyright: reportInvalidTypeForm=false
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from memory_store.table_spec import OptimizerSpec
from workers.gpu.compilation import kernel, kernel_for_any, kernels_run_on, power_of_two, tl
from workers.gpu.row_gradients import ENTRIES, PIECE, RowGradients, sum_of_row, warps_for

AT_ONCE = 16
_WORD = 0xFFFFFFFF
# Their places are the numbers by which the kernel knows them.
_KINDS = ("sgd", "adagrad", "rowwise_adagrad", "adam", "rowwise_adam")


@dataclass(frozen=True)
class RowTensors:
    """The tensors of a table: values `[A, D]` float32 or bfloat16, two states float32 `[A, width]`, last_step int32 `[A]`."""

    values: Tensor
    first_state: Tensor
    second_state: Tensor
    last_step: Tensor


def floor_bytes(entries: int, distinct: int, dim: int, state_width: int, item_bytes: int = 4) -> int:
    """Bytes that an update of sorted entries must move; see the module."""
    return entries * (4 * dim + 24) + distinct * (2 * item_bytes * dim + 8 * state_width + 4)


def squared_norm(gradients: RowGradients) -> Tensor:
    """Sum of squares of all rows' summed gradients: a float32 scalar on the device."""
    if not kernels_run_on(gradients.rows.device):
        return gradients.summed()[1].square().sum()
    entries, dim = gradients.rows.numel(), gradients.vectors.shape[1]
    squares = torch.zeros(entries, device=gradients.rows.device)
    if entries:
        _squares_kernel[(-(-entries // AT_ONCE),)](
            *gradients.by_row, squares, entries, gradients.table_rows, dim,
            B=AT_ONCE, P=PIECE, E=ENTRIES, C=power_of_two(dim), num_warps=warps_for(dim),
        )  # fmt: skip
    return squares.sum()


def update_rows(
    optimizer: OptimizerSpec,
    table: RowTensors,
    gradients: RowGradients,
    *,
    step: int,
    learning_rate: float,
    scale: Tensor,
    seed: int,
    first_address: int = 0,
) -> None:
    """Update the rows that `gradients` names; `step` counts from 1, `scale` is a float32 scalar on the device.

    Row 0 of the table has the address `first_address`, by which bfloat16 is rounded.
    """
    if not gradients.rows.numel():
        return
    if not kernels_run_on(table.values.device):
        update_reference(
            optimizer, table, gradients, step=step, learning_rate=learning_rate, scale=scale, seed=seed,
            first_address=first_address,
        )  # fmt: skip
        return
    beta1, beta2 = optimizer.betas
    key = _step_key(seed, step)
    entries, dim = gradients.rows.numel(), table.values.shape[1]
    _update_kernel[(-(-entries // AT_ONCE),)](
        *gradients.by_row,
        table.values, table.first_state, table.second_state, table.last_step, scale,
        entries, gradients.table_rows, first_address, dim, step,
        key - (key >> 31 << 32),  # as a signed number: one type, one compilation
        learning_rate, _corrected(optimizer, step, learning_rate), 1 - beta1, 1 - beta2, optimizer.eps,
        KIND=_KINDS.index(optimizer.kind), ROUND=table.values.dtype == torch.bfloat16,
        B=AT_ONCE, P=PIECE, E=ENTRIES, C=power_of_two(dim), num_warps=warps_for(dim),
    )  # fmt: skip


def update_reference(
    optimizer: OptimizerSpec,
    table: RowTensors,
    gradients: RowGradients,
    *,
    step: int,
    learning_rate: float,
    scale: Tensor,
    seed: int,
    first_address: int = 0,
) -> None:
    """`update_rows` in torch operations."""
    rows, g = gradients.summed()
    g = g * scale
    first, second = table.first_state[rows], table.second_state[rows]
    beta1, beta2 = optimizer.betas
    mean_square = g.square().mean(dim=1, keepdim=True)
    if optimizer.kind == "sgd":
        change = learning_rate * g
    elif optimizer.kind in ("adagrad", "rowwise_adagrad"):
        first = first + (g.square() if optimizer.kind == "adagrad" else mean_square)
        change = learning_rate * g / (first.sqrt() + optimizer.eps)
    else:
        first = first + (1 - beta1) * (g - first)
        second = second + (1 - beta2) * ((g.square() if optimizer.kind == "adam" else mean_square) - second)
        change = _corrected(optimizer, step, learning_rate) * first / (second.sqrt() + optimizer.eps)
    moved = table.values[rows].float() - change
    if table.values.dtype == torch.bfloat16:
        dim = moved.shape[1]
        half = (dim + 1) // 2
        words = _mixed_of(
            _mixed_of(rows + first_address ^ _step_key(seed, step))[:, None]
            + torch.arange(half, device=moved.device)
            & _WORD
        )
        noise = torch.cat([words & 0xFFFF, words >> 16], dim=1)[:, :dim]
        bits = (moved.view(torch.int32).long() & _WORD) + noise >> 16 & 0xFFFF
        moved = (bits << 16).to(torch.int32).view(torch.float32)  # exact in bfloat16
    table.values[rows] = moved.to(table.values.dtype)
    table.first_state[rows], table.second_state[rows] = first, second
    table.last_step[rows] = step


def _corrected(optimizer: OptimizerSpec, step: int, learning_rate: float) -> float:
    """Adam's learning rate with the correction of both moments' start at zero."""
    beta1, beta2 = optimizer.betas
    return learning_rate * math.sqrt(1 - beta2**step) / (1 - beta1**step)


def _step_key(seed: int, step: int) -> int:
    return mixed((seed & _WORD) + step & _WORD)


def mixed(value: int) -> int:
    """`memory_store.value_types.mix` of one number."""
    value = (value ^ value >> 16) * 0x7FEB352D & _WORD
    value = (value ^ value >> 15) * 0x846CA68B & _WORD
    return value ^ value >> 16


def _mixed_of(value: Tensor) -> Tensor:
    """`mixed` of int64 tensors; products wrap at 2**64, which leaves their lower 32 bits right."""
    value = (value ^ value >> 16) * 0x7FEB352D & _WORD
    value = (value ^ value >> 15) * 0x846CA68B & _WORD
    return value ^ value >> 16


@kernel
def _mix(value):  # type: ignore[no-untyped-def]  # Triton's language has no types to give
    value = (value ^ (value >> 16)) * 0x7FEB352D
    value = (value ^ (value >> 15)) * 0x846CA68B
    return value ^ (value >> 16)


@kernel_for_any("entries")
def _squares_kernel(  # type: ignore[no-untyped-def]
    by_row, vector_numbers, weights, vectors, piece_sums, squares, entries, table_rows, dim,
    B: tl.constexpr, P: tl.constexpr, E: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * B
    previous = tl.load(by_row + first - 1, mask=first > 0, other=-1)
    for begin in range(first, tl.minimum(first + B, entries)):
        row = tl.load(by_row + begin)
        if (row != previous) & (row < table_rows):
            total = sum_of_row(
                begin, row, by_row, vector_numbers, weights, vectors, piece_sums, entries, dim, P, E, C
            )
            tl.store(squares + begin, tl.sum(total * total, axis=0))
        previous = row


@kernel
def _update_row(  # type: ignore[no-untyped-def]
    row, g, values, first_state, second_state, last_step, first_address, dim, step, step_key,
    rate, corrected, one_minus_beta1, one_minus_beta2, eps,
    KIND: tl.constexpr, ROUND: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """One step of `row` with the gradient g `[C]`."""
    column = tl.arange(0, C)
    inside = column < dim
    mean_square = tl.div_rn(tl.sum(g * g, axis=0), tl.cast(dim, tl.float32))
    change = rate * g
    if KIND == 1:  # adagrad
        s = tl.load(first_state + row * dim + column, mask=inside, other=0.0) + g * g
        tl.store(first_state + row * dim + column, s, mask=inside)
        change = tl.div_rn(rate * g, tl.sqrt_rn(s) + eps)
    if KIND == 2:  # rowwise_adagrad
        of_row = tl.load(first_state + row) + mean_square
        tl.debug_barrier()  # every thread reads it, and one writes it
        tl.store(first_state + row, of_row)
        change = tl.div_rn(rate, tl.sqrt_rn(of_row) + eps) * g
    if KIND >= 3:  # both kinds of Adam
        m = tl.load(first_state + row * dim + column, mask=inside, other=0.0)
        m += one_minus_beta1 * (g - m)
        tl.store(first_state + row * dim + column, m, mask=inside)
        if KIND == 3:
            v = tl.load(second_state + row * dim + column, mask=inside, other=0.0)
            v += one_minus_beta2 * (g * g - v)
            tl.store(second_state + row * dim + column, v, mask=inside)
            change = tl.div_rn(corrected * m, tl.sqrt_rn(v) + eps)
        else:
            v_of_row = tl.load(second_state + row)
            tl.debug_barrier()
            v_of_row += one_minus_beta2 * (mean_square - v_of_row)
            tl.store(second_state + row, v_of_row)
            change = tl.div_rn(corrected, tl.sqrt_rn(v_of_row) + eps) * m
    place = values + row * dim + column
    moved = tl.load(place, mask=inside, other=0.0).to(tl.float32) - change
    if ROUND:
        key = _mix((row + first_address).to(tl.uint32) ^ tl.cast(step_key, tl.uint32))
        half = (dim + 1) // 2
        word = _mix(key + tl.where(column < half, column, column - half).to(tl.uint32))
        noise = tl.where(column < half, word & 0xFFFF, word >> 16)
        bits = moved.to(tl.uint32, bitcast=True) + noise
        tl.store(place, (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True), mask=inside)
    else:
        tl.store(place, moved, mask=inside)
    tl.store(last_step + row, step)


@kernel_for_any("entries", "step", "step_key")
def _update_kernel(  # type: ignore[no-untyped-def]
    by_row, vector_numbers, weights, vectors, piece_sums,
    values, first_state, second_state, last_step, scale,
    entries, table_rows, first_address, dim, step, step_key,
    rate, corrected, one_minus_beta1, one_minus_beta2, eps,
    KIND: tl.constexpr, ROUND: tl.constexpr,
    B: tl.constexpr, P: tl.constexpr, E: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * B
    previous = tl.load(by_row + first - 1, mask=first > 0, other=-1)
    for begin in range(first, tl.minimum(first + B, entries)):
        row = tl.load(by_row + begin)
        if (row != previous) & (row < table_rows):
            g = tl.load(scale) * sum_of_row(
                begin, row, by_row, vector_numbers, weights, vectors, piece_sums, entries, dim, P, E, C
            )
            _update_row(
                row, g, values, first_state, second_state, last_step, first_address, dim, step, step_key,
                rate, corrected, one_minus_beta1, one_minus_beta2, eps, KIND, ROUND, C,
            )  # fmt: skip
        previous = row
