"""The row optimizers against PyTorch's, and against the formulas spelled out in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_store.grouping import group_by_address
from memory_store.optimizers import Contributions, RowState, squared_norm_by_bucket, sum_by_row, update_rows
from memory_store.table_spec import OptimizerKind, OptimizerSpec
from tests.memory_store.reference import ReferenceTable

KINDS: list[OptimizerKind] = ["sgd", "adagrad", "rowwise_adagrad", "adam", "rowwise_adam"]
ROWS, DIM, FIRST, STEPS = (
    50,
    22,
    700,
    8,
)  # rows of more than the numbers that kernels take at once, and some besides
RATE, SCALE = 0.05, 0.5


class Table:
    """Rows under one of our optimizers, all arrays from the outside."""

    def __init__(self, spec: OptimizerSpec, dtype: type, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        first, second = spec.state_widths(DIM)
        self.spec, self.dtype = spec, dtype
        self.arrays = RowState(
            rng.normal(size=(ROWS, DIM)).astype(dtype),
            np.zeros((ROWS, first), dtype=dtype),
            np.zeros((ROWS, second), dtype=dtype),
            np.zeros(ROWS, dtype=np.uint32),
        )
        self.step = 0

    def update(self, rows: np.ndarray, weights: np.ndarray, vectors: np.ndarray, **changes: Any) -> None:
        self.step += 1
        given = {"step": self.step, "learning_rate": RATE, "scale": SCALE, "seed": 0, **changes}
        update_rows(self.spec, self.arrays, FIRST, grouped(rows, weights, vectors), **given)


def grouped(rows: np.ndarray, weights: np.ndarray, vectors: np.ndarray) -> Contributions:
    """One contribution a row number: weights[e] * vectors[e % V]."""
    vector_of_entry = (np.arange(rows.size) % vectors.shape[0]).astype(np.int32)
    addresses = (rows + FIRST).astype(np.uint32)
    return Contributions.grouped(group_by_address(addresses), vector_of_entry, weights, vectors)


def contribution(rng: np.random.Generator, dtype: type) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entries that meet some rows several times and leave half of the table out."""
    rows = rng.integers(0, ROWS // 2, size=40)
    return rows, rng.normal(size=40).astype(dtype), rng.normal(size=(13, DIM)).astype(dtype)


def gradient_of_each_entry(weights: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return weights[:, None].astype(np.float64) * vectors[np.arange(weights.size) % vectors.shape[0]]


TORCH: dict[str, Callable[[list[torch.Tensor]], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=RATE),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=RATE, eps=1e-6),
    "adam": lambda parameters: torch.optim.SparseAdam(parameters, lr=RATE, betas=(0.8, 0.95), eps=1e-6),
}


@pytest.mark.parametrize("kind", TORCH)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-6), (np.float64, 1e-13)])
def test_equals_torch_on_the_same_sparse_gradients(kind: OptimizerKind, dtype: type, tolerance: float):
    table = Table(OptimizerSpec(kind, (0.8, 0.95), 1e-6), dtype)
    parameter = torch.nn.Parameter(torch.from_numpy(table.arrays.values.copy()))
    optimizer = TORCH[kind]([parameter])
    rng = np.random.default_rng(1)
    for _ in range(STEPS):
        rows, weights, vectors = contribution(rng, dtype)
        table.update(rows, weights, vectors)
        each = torch.from_numpy(SCALE * gradient_of_each_entry(weights, vectors)).to(parameter.dtype)
        with torch.sparse.check_sparse_tensor_invariants():
            parameter.grad = torch.sparse_coo_tensor(torch.from_numpy(rows[None]), each, (ROWS, DIM))
            optimizer.step()
        np.testing.assert_allclose(
            table.arrays.values, parameter.detach().numpy(), rtol=tolerance, atol=tolerance
        )
    assert (
        abs(table.arrays.values[: ROWS // 2] - Table(table.spec, dtype).arrays.values[: ROWS // 2]).min()
        > 1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 3e-6), (np.float64, 1e-13)])
def test_equals_the_formulas_spelled_out(kind: OptimizerKind, dtype: type, tolerance: float):
    spec = OptimizerSpec(kind, (0.8, 0.95), 1e-6)
    table = Table(spec, dtype)
    reference = ReferenceTable(table.arrays.values, kind, spec.betas, spec.eps)
    rng = np.random.default_rng(2)
    for _ in range(STEPS):
        rows, weights, vectors = contribution(rng, dtype)
        table.update(rows, weights, vectors)
        total = np.zeros((ROWS, DIM))
        np.add.at(total, rows, SCALE * gradient_of_each_entry(weights, vectors))
        reference.step({int(row): total[row] for row in np.unique(rows)}, RATE)
        np.testing.assert_allclose(table.arrays.values, reference.values, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_without_a_contribution_keep_every_bit(kind: OptimizerKind, dtype: type):
    table = Table(OptimizerSpec(kind), dtype)
    rng = np.random.default_rng(3)
    for _ in range(3):
        table.update(*contribution(rng, dtype))
    arrays = list(vars(table.arrays).values())
    before = [array.copy() for array in arrays]
    touched = np.array([3, 3, 11, 48])
    table.update(touched, np.ones(4, dtype), rng.normal(size=(4, DIM)).astype(dtype))
    for array, old in zip(arrays, before, strict=True):
        changed = np.nonzero((array != old).reshape(ROWS, -1).any(axis=1))[0].tolist() if array.size else []
        assert changed == ([3, 11, 48] if array.size else [])
        untouched = np.delete(np.arange(ROWS), touched)
        assert array[untouched].tobytes() == old[untouched].tobytes()
    assert table.arrays.last_step[[3, 11, 48]].tolist() == [4, 4, 4]


@pytest.mark.parametrize("kind", KINDS)
def test_duplicates_are_summed_before_one_update(kind: OptimizerKind):
    """Powers of two add without rounding, so a row in three parts equals the row with the sum, bit for bit."""
    parts, whole = Table(OptimizerSpec(kind), np.float32), Table(OptimizerSpec(kind), np.float32)
    powers = np.resize(np.float32([1.0, -2, 4, 0.5, 8, 0]), DIM)
    vectors = powers * np.float32([[1], [2], [-0.5]])
    for _ in range(2):
        parts.update(np.array([5, 5, 5]), np.float32([1, 0.5, 2]), vectors)
        whole.update(np.array([5]), np.float32([1]), vectors[:1])
    for one, other in zip(vars(parts.arrays).values(), vars(whole.arrays).values(), strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_of_zero_leaves_finite_rows(kind: OptimizerKind):
    table = Table(OptimizerSpec(kind, eps=1e-30), np.float32)
    before = table.arrays.values.copy()
    table.update(np.array([1]), np.ones(1, np.float32), np.zeros((1, DIM), np.float32))
    np.testing.assert_array_equal(table.arrays.values, before)


@given(seed=st.integers(0, 1000), entries=st.integers(0, 40), dim=st.integers(1, 40))
@settings(max_examples=50)
def test_row_gradients_are_summed(seed: int, entries: int, dim: int):
    rng = np.random.default_rng(seed)
    rows, weights = rng.integers(0, 9, size=entries), rng.normal(size=entries)
    vectors = rng.normal(size=(5, dim))
    expected = np.zeros((9, dim))
    np.add.at(expected, rows, gradient_of_each_entry(weights, vectors))
    found = sum_by_row(grouped(rows, weights, vectors))
    np.testing.assert_allclose(found, expected[np.unique(rows)], rtol=1e-12, atol=1e-12)


def test_squared_norms_by_bucket_add_up_to_the_norm_of_the_whole_gradient():
    capacity = 5
    rng = np.random.default_rng(5)
    rows, weights, vectors = contribution(rng, np.float32)
    total = np.zeros((ROWS, DIM))
    np.add.at(total, rows, gradient_of_each_entry(weights, vectors))
    by_bucket = squared_norm_by_bucket(grouped(rows, weights, vectors), capacity)
    assert by_bucket.shape == (1024,)
    assert by_bucket.sum() == pytest.approx(np.linalg.norm(total) ** 2, rel=1e-6)
    bucket = (np.arange(ROWS) + FIRST) // capacity
    for number in range(1024):
        assert by_bucket[number] == pytest.approx((total[bucket == number] ** 2).sum(), rel=1e-5)
