"""Gather, pooling and the gradient of its weights, against sums spelled out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memory_store.grouping import group_by_address
from memory_store.kernels import (
    all_finite,
    gather_rows,
    pool_rows,
    weight_gradients,
    weight_gradients_by_row,
)
from memory_store.reused_memory import empty
from memory_store.row_copies import LARGE_BYTES, goes_past_caches

FIRST = 1000  # the first address of the values below
TYPES = ["float32", "bfloat16", "float64"]


def stored(numbers: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers as a shard stores them in `dtype`, and what they are after that, in float64."""
    if dtype == "bfloat16":
        rounded = torch.from_numpy(numbers).to(torch.bfloat16)
        return rounded.view(torch.uint16).numpy(), rounded.double().numpy()
    return numbers.astype(dtype), numbers.astype(dtype).astype(np.float64)


class Case:
    """Random rows, and entries of tokens with 0 to 9 entries each, some rows more than once."""

    def __init__(self, dtype: str, seed: int, dim: int = 5) -> None:
        rng = np.random.default_rng(seed)
        self.values, self.numbers = stored(rng.normal(size=(12, dim)), dtype)
        self.compute = np.float64 if dtype == "float64" else np.float32
        self.counts = rng.integers(0, 10, size=7)
        self.offsets = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int32)
        self.token = np.repeat(np.arange(7), self.counts)
        self.rows = rng.integers(0, 12, size=self.token.size)
        self.addresses = (self.rows + FIRST).astype(np.uint32)
        self.weights = rng.normal(size=self.token.size).astype(self.compute)
        self.output_gradient = rng.normal(size=(7, dim)).astype(self.compute)
        self.tolerance = (
            {"rtol": 1e-12, "atol": 1e-12} if dtype == "float64" else {"rtol": 1e-5, "atol": 1e-5}
        )


@pytest.mark.parametrize("dtype", TYPES)
@given(seed=st.integers(0, 10_000))
def test_gathered_rows_are_the_stored_numbers(dtype: str, seed: int):
    case = Case(dtype, seed)
    out = np.empty((case.rows.size, 5), dtype=case.compute)
    gather_rows(case.values, FIRST, case.addresses, out)
    np.testing.assert_array_equal(out, case.numbers[case.rows])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("dim", "past_caches"), [(128, True), (144, True), (131, False), (16, False)])
def test_large_gathers_write_the_same_numbers(dtype: str, dim: int, past_caches: bool):
    chance = np.random.default_rng(dim)
    values, numbers = stored(chance.normal(size=(300, dim)), dtype)
    rows = chance.integers(0, 300, size=LARGE_BYTES // (dim * 4) + 3)
    out = empty((rows.size, dim), np.float64 if dtype == "float64" else np.float32)
    out.fill(np.nan)
    assert goes_past_caches(out) == past_caches
    gather_rows(values, FIRST, (rows + FIRST).astype(np.uint32), out)
    np.testing.assert_array_equal(out, numbers[rows])


def test_a_target_that_does_not_begin_with_a_cache_line_is_written_through_them():
    shifted = empty((LARGE_BYTES // 512 + 1, 128), np.float32).reshape(-1)[4:-124].reshape(-1, 128)
    assert not goes_past_caches(shifted)


@pytest.mark.parametrize("dtype", TYPES)
@given(seed=st.integers(0, 10_000), dim=st.integers(1, 40))
def test_pooling_is_the_weighted_sum(dtype: str, seed: int, dim: int):
    case = Case(dtype, seed, dim)
    expected = np.zeros((7, dim))
    np.add.at(expected, case.token, case.weights[:, None].astype(np.float64) * case.numbers[case.rows])
    out = np.full((7, dim), np.nan, dtype=case.compute)
    pool_rows(case.values, FIRST, case.offsets, case.addresses, case.weights, out)
    np.testing.assert_allclose(out, expected, **case.tolerance)


@pytest.mark.parametrize("dtype", TYPES)
@given(seed=st.integers(0, 10_000), dim=st.integers(1, 40))
def test_the_gradient_of_a_weight_is_row_times_output_gradient(dtype: str, seed: int, dim: int):
    case = Case(dtype, seed, dim)
    expected = (case.numbers[case.rows] * case.output_gradient[case.token]).sum(axis=1)
    out = np.full(case.rows.size, np.nan, dtype=case.compute)
    weight_gradients(case.values, FIRST, case.offsets, case.addresses, case.output_gradient, out)
    np.testing.assert_allclose(out, expected, **case.tolerance)


@pytest.mark.parametrize("dtype", TYPES)
@given(seed=st.integers(0, 10_000), dim=st.integers(1, 40))
def test_the_gradients_of_weights_have_the_same_bits_row_by_row(dtype: str, seed: int, dim: int):
    case = Case(dtype, seed, dim)
    by_token, by_row = (np.full(case.rows.size, np.nan, dtype=case.compute) for _ in range(2))
    weight_gradients(case.values, FIRST, case.offsets, case.addresses, case.output_gradient, by_token)
    groups = group_by_address(case.addresses)
    tokens = case.token[groups.order].astype(np.int32)
    weight_gradients_by_row(
        case.values,
        FIRST,
        groups.addresses,
        groups.starts,
        groups.order,
        tokens,
        case.output_gradient,
        by_row,
    )
    assert by_token.tobytes() == by_row.tobytes()


@pytest.mark.parametrize("dtype", TYPES)
def test_pooling_rows_that_were_fetched_gives_the_same_bits(dtype: str):
    case = Case(dtype, 3, dim=33)
    distinct, inverse = np.unique(case.addresses, return_inverse=True)
    fetched = np.empty((distinct.size, 33), dtype=case.compute)
    gather_rows(case.values, FIRST, distinct, fetched)
    at_shard, at_trainer = (np.empty((7, 33), dtype=case.compute) for _ in range(2))
    pool_rows(case.values, FIRST, case.offsets, case.addresses, case.weights, at_shard)
    pool_rows(fetched, 0, case.offsets, inverse.astype(np.uint32), case.weights, at_trainer)
    assert at_shard.tobytes() == at_trainer.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_is_found_wherever_it_is(dtype: type, bad: float):
    largest = np.finfo(dtype).max
    for size in (1, 2, 7, 64, 65):
        numbers = np.full(size, largest, dtype=dtype)
        numbers[::2] *= -1
        assert all_finite(numbers)
        for place in range(size):
            spoiled = numbers.copy()
            spoiled[place] = bad
            assert not all_finite(spoiled)
    assert all_finite(np.empty(0, dtype=dtype))
