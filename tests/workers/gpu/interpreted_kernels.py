"""The GPU kernels under Triton's interpreter, on the CPU; test_kernels.py runs these tests in a process of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from memory_store.grouping import group_by_address
from memory_store.kernels import pool_rows, weight_gradients
from memory_store.optimizers import Contributions, RowState
from memory_store.optimizers import squared_norm_by_bucket as numba_squared_norm
from memory_store.optimizers import update_rows as numba_update
from memory_store.table_spec import OptimizerSpec
from memory_store.value_types import to_bfloat16
from tests.workers.gpu.seen_waits import seen_waits
from workers.gpu import pooling, selection
from workers.gpu.compilation import kernels_run_on
from workers.gpu.row_gradients import PIECE, RowGradients
from workers.gpu.row_update import AT_ONCE, RowTensors, squared_norm, update_reference, update_rows

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_kernels_run_here() -> None:
    assert kernels_run_on(CPU)


# ---- pooling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("bags", "per_bag", "dim"), [(5, 7, 20), (3, 4, 64), (0, 4, 8)])
def test_pooling_and_its_gradients(dtype: torch.dtype, bags: int, per_bag: int, dim: int) -> None:
    values = torch.randn(30, dim, generator=generator()).to(dtype)
    rows = torch.randint(0, 30, (bags, per_bag), generator=generator(1))
    weights = torch.randn(bags, per_bag, generator=generator(2))
    gradient = torch.randn(bags, dim, generator=generator(3))
    stored = values.float().numpy()
    offsets = np.arange(bags + 1, dtype=np.int32) * np.int32(per_bag)
    addresses = rows.flatten().numpy().astype(np.uint32)
    sums, of_weights = np.empty((bags, dim), np.float32), np.empty(bags * per_bag, np.float32)
    pool_rows(stored, 0, offsets, addresses, weights.flatten().numpy(), sums)
    weight_gradients(stored, 0, offsets, addresses, gradient.numpy(), of_weights)
    for pool in (pooling.pool, pooling.pool_reference):
        torch.testing.assert_close(pool(values, rows, weights), torch.from_numpy(sums))
    for weigh in (pooling.weight_gradient, pooling.weight_gradient_reference):
        found = weigh(values, rows, gradient)
        torch.testing.assert_close(found, torch.from_numpy(of_weights).view(bags, per_bag))
    dense = torch.zeros(30, dim)
    for bag in range(bags):
        for entry in range(per_bag):
            dense[rows[bag, entry]] += weights[bag, entry] * gradient[bag]
    for summed in (pooling.sum_by_row, pooling.sum_by_row_reference):
        torch.testing.assert_close(summed(30, rows, weights, gradient), dense)


def test_wide_rows_and_long_bags_are_pooled_in_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "COLUMNS_MAX", 16)
    monkeypatch.setattr(pooling, "ENTRIES_MAX", 2)
    values, rows = torch.randn(9, 50, generator=generator()), torch.tensor([[0, 8, 0, 0, 5], [3, 3, 0, 3, 3]])
    weights, gradient = torch.randn(2, 5, generator=generator(1)), torch.randn(2, 50, generator=generator(2))
    torch.testing.assert_close(
        pooling.pool(values, rows, weights), pooling.pool_reference(values, rows, weights)
    )
    expected = pooling.weight_gradient_reference(values, rows, gradient)
    torch.testing.assert_close(pooling.weight_gradient(values, rows, gradient), expected)
    expected = pooling.sum_by_row_reference(9, rows, weights, gradient)
    torch.testing.assert_close(pooling.sum_by_row(9, rows, weights, gradient), expected)


@pytest.mark.parametrize("piece", [1, 8, 512])
def test_rows_with_many_entries_are_summed_in_pieces(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "ROW_PIECE", piece)
    monkeypatch.setattr(pooling, "ENTRIES_MAX", 4)
    rows = torch.randint(0, 6, (60, 3), generator=generator()).square()  # of 30 rows many have no entry
    weights, gradient = torch.randn(60, 3, generator=generator(1)), torch.randn(60, 5, generator=generator(2))
    expected = pooling.sum_by_row_reference(30, rows, weights, gradient)
    torch.testing.assert_close(pooling.sum_by_row(30, rows, weights, gradient), expected)


# ---- row update --------------------------------------------------------------------------------------------------


def random_gradients(entries: int, rows: int, dim: int, seed: int, table_rows: int) -> RowGradients:
    """Of which one row has half of all entries: more than are read at a time."""
    chosen = torch.randint(0, rows, (entries,), generator=generator(seed))
    chosen[::2] = 3
    return RowGradients(
        chosen,
        torch.randint(0, 5, (entries,), generator=generator(seed + 1)),
        torch.randn(entries, generator=generator(seed + 2)),
        torch.randn(5, dim, generator=generator(seed + 3)),
        table_rows,
    )


def as_contributions(gradients: RowGradients, rows: int, first_address: int = 0) -> Contributions:
    """Those to the first `rows` rows, of which the first has the address `first_address`."""
    here = gradients.rows.numpy() < rows
    groups = group_by_address((gradients.rows.numpy()[here] + first_address).astype(np.uint32))
    numbers = gradients.vector_numbers.numpy()[here].astype(np.int32)
    return Contributions.grouped(groups, numbers, gradients.weights.numpy()[here], gradients.vectors.numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["sgd", "adagrad", "rowwise_adagrad", "adam", "rowwise_adam"])
def test_row_update_is_that_of_the_shards(kind: Any, dtype: torch.dtype) -> None:
    optimizer, rows, dim = OptimizerSpec(kind), 12, 6
    start = torch.randn(rows, dim, generator=generator()).numpy()
    stored = start if dtype == torch.float32 else to_bfloat16(start)
    first, second = (np.zeros((rows, width), np.float32) for width in optimizer.state_widths(dim))
    shard = RowState(stored.copy(), first, second, np.zeros(rows, np.uint32))
    tables = [
        RowTensors(
            torch.from_numpy(stored.copy() if dtype == torch.float32 else stored.view(np.int16).copy()).view(dtype),
            *(torch.zeros(rows, width) for width in optimizer.state_widths(dim)),
            torch.zeros(rows, dtype=torch.int32),
        )
        for _ in range(2)
    ]  # fmt: skip
    settings = {"learning_rate": 0.1, "seed": 2**33 + 5}
    first_address = 1000  # as of a device that has a part of a table; rows beyond its end are elsewhere
    for step in (1, 2, 3):
        gradients = random_gradients(15 * step, rows + 4, dim, 10 * step, rows)
        here = as_contributions(gradients, rows, first_address)
        numba_update(optimizer, shard, first_address, here, step=step, scale=0.5, **settings)
        for update, table in zip((update_rows, update_reference), tables, strict=True):
            update(
                optimizer, table, gradients, step=step, scale=torch.tensor(0.5), first_address=first_address,
                **settings,
            )  # fmt: skip
    for table in tables:
        expected = torch.from_numpy(
            shard.values.view(np.int16) if dtype != torch.float32 else shard.values
        ).view(dtype)
        if dtype == torch.float32:
            torch.testing.assert_close(table.values, expected)
        else:
            # The same random bits: all but the few whose float32 sums were rounded across a boundary are equal.
            assert (table.values == expected).float().mean() > 0.95
            torch.testing.assert_close(table.values, expected, rtol=2**-7, atol=1e-3)
        torch.testing.assert_close(table.first_state, torch.from_numpy(first))
        torch.testing.assert_close(table.second_state, torch.from_numpy(second))
        assert torch.equal(table.last_step, torch.from_numpy(shard.last_step.view(np.int32)))


def test_the_norm_of_a_gradient_counts_every_row_once() -> None:
    for rows in (9, 6):  # all of them, and without those that are elsewhere
        gradients = random_gradients(20, 9, 8, 3, rows)
        expected = numba_squared_norm(as_contributions(gradients, rows), 1).sum()
        assert squared_norm(gradients).item() == pytest.approx(float(expected), rel=1e-5)


def test_untouched_rows_keep_every_bit() -> None:
    table = RowTensors(
        torch.ones(4, 3), torch.ones(4, 3), torch.ones(4, 3), torch.zeros(4, dtype=torch.int32)
    )
    one = RowGradients(torch.tensor([2, 2]), torch.tensor([0, 0]), torch.ones(2), torch.ones(1, 3), 4)
    update_rows(OptimizerSpec("adam"), table, one, step=5, learning_rate=0.1, scale=torch.tensor(1.0), seed=0)
    others = torch.tensor([0, 1, 3])
    for tensor in (table.values, table.first_state, table.second_state):
        assert (tensor[others] == 1).all()
        assert (tensor[2] != 1).all()
    assert table.last_step.tolist() == [0, 0, 5, 0]


def gradients_of_long_rows(before: int, lengths: tuple[int, ...], seed: int = 0) -> RowGradients:
    """Row 0 has `before` entries, and the following ones as many as `lengths` says; the last row is elsewhere."""
    counts = torch.tensor([before, *lengths])
    chosen = torch.arange(counts.numel()).repeat_interleave(counts)
    mixed = chosen[torch.randperm(chosen.numel(), generator=generator(seed + 7))]
    return RowGradients(
        mixed,
        torch.randint(0, 5, mixed.shape, generator=generator(seed)),
        torch.randn(mixed.shape, generator=generator(seed + 1)),
        torch.randn(5, 3, generator=generator(seed + 2)),
        counts.numel() - 1,
    )


def updated_values(gradients: RowGradients, update: Any = update_rows) -> Tensor:
    """Rows of nothing less the gradients' sums."""
    rows, empty = gradients.table_rows, torch.zeros(gradients.table_rows, 0)
    table = RowTensors(torch.zeros(rows, 3), empty, empty, torch.zeros(rows, dtype=torch.int32))
    one = torch.tensor(1.0)
    update(OptimizerSpec("sgd"), table, gradients, step=1, learning_rate=1.0, scale=one, seed=0)
    return table.values


@pytest.mark.parametrize("before", [0, 1, PIECE - 1, PIECE, 2 * PIECE + 5])
@pytest.mark.parametrize(
    "lengths",
    [
        (PIECE, PIECE + 1, 1, 3),
        (7 * PIECE + 1, 2, 6 * PIECE, 5 * PIECE),
        (AT_ONCE, AT_ONCE - 1, 2 * PIECE - 1, 1),
    ],
)
def test_sums_of_rows_with_many_entries(before: int, lengths: tuple[int, ...]) -> None:
    gradients = gradients_of_long_rows(before, lengths)
    torch.testing.assert_close(
        updated_values(gradients), updated_values(gradients, update_reference), rtol=1e-5, atol=1e-4
    )
    expected = gradients.summed()[1].square().sum()
    torch.testing.assert_close(squared_norm(gradients), expected)


def test_where_a_row_lies_among_others_changes_no_bit_of_its_sum() -> None:
    """So that a table's rows are the same on one device and on several."""
    whole = gradients_of_long_rows(37, (5 * PIECE + 3, 130, 4))
    alone = whole.rows == 1
    only = RowGradients(
        whole.rows[alone], whole.vector_numbers[alone], whole.weights[alone], whole.vectors, whole.table_rows
    )
    assert torch.equal(updated_values(whole)[1], updated_values(only)[1])


def test_what_is_done_around_kernels_waits_for_nothing() -> None:
    queries = torch.randn(3, 2, 2, 4, generator=generator(1), requires_grad=True)
    sub_keys = torch.randn(2, 2, 12, 4, generator=generator(2), requires_grad=True)
    gradients = gradients_of_long_rows(3, (PIECE + 1, 2, 4))
    values, rows = (
        torch.randn(9, 5, generator=generator()),
        torch.randint(0, 9, (6, 3), generator=generator()),
    )
    weights, output_gradient = torch.rand(6, 3), torch.rand(6, 5)
    with seen_waits() as waits:
        _, scores = selection.select(queries, sub_keys, 3)
        scores.sum().backward()  # type: ignore[no-untyped-call]
        updated_values(gradients)
        squared_norm(gradients)
        pooling.pool(values, rows, weights)
        pooling.weight_gradient(values, rows, output_gradient)
        pooling.sum_by_row(9, rows, weights, output_gradient)
    assert waits == []
